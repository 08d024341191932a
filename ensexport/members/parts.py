"""One file's tensors -> the member or members in it, by what the architecture calls its tensors.

A training framework keeps the network under an attribute of its own (`model.fc.weight`), an ensemble class keeps all
members in one module (`estimators_.3.fc.weight`), `ensexport.stack(...).state_dict()` has them side by side on a
leading axis. Names and shapes of the architecture decide; nothing is guessed without one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ensexport.errors import StackError
from ensexport.members.containers import WRAPPERS
from ensexport.members.fitting import AVERAGING_COUNTERS, BATCH_COUNTER, Blueprint, Fitted, fit_state
from ensexport.members.wording import join_some

_TRAINING_ONLY = re.compile(r"(?:train|val|valid|test)_\w+|\w*(?:loss|criterion|metrics?|accuracy|auroc)(?:_\w+)?|acc")
_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Part:
    """One member's share of a file.

    Attributes:
        fitted: Its tensors with the architecture's names.
        index: Its number in the file; None if the file holds one member alone.
        dropped: Names of the file's tensors that belong to a loss or a metric.
    """

    fitted: Fitted
    index: int | None
    dropped: tuple[str, ...] = ()


def cut_prefix(label: str, state: Mapping[str, torch.Tensor], prefix: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Keep the names that begin with a prefix the user named, without it.

    Args:
        label: The file, for messages.
        state: Its tensors.
        prefix: For example `model.`; the dot may be left out.

    Returns:
        The state dict, and the names that were left out.

    Raises:
        StackError: No name begins so.
    """
    full = prefix if prefix.endswith(".") else f"{prefix}."
    kept = {name.removeprefix(full): tensor for name, tensor in state.items() if name.startswith(full)}
    if not kept:
        starts = dict.fromkeys(name.partition(".")[0] + "." * ("." in name) for name in state)
        raise StackError(
            f"no tensor of {label} has a name that begins with {full!r}: they begin with "
            f"{join_some([repr(start) for start in starts])}.",
            hint="Give the prefix as it stands in the file (--strip-prefix), or leave it out.",
        )
    return kept, [name for name in state if not name.startswith(full)]


def split_state(
    label: str, state: Mapping[str, torch.Tensor], stripped_prefix: str | None, blueprint: Blueprint
) -> list[Part]:
    """Find the member, or the members, in the tensors of one file.

    Args:
        label: The file, for messages.
        state: Its tensors.
        stripped_prefix: What was taken off their names already.
        blueprint: What the architecture expects.

    Returns:
        One part a member, in order. If nothing fits, one part with all tensors: `check_fit` says why.

    Raises:
        StackError: Two prefixes fit, or tensors outside of the one that fits are no loss's or metric's.
    """
    if not blueprint.shapes:
        return [Part(fit_state(state, stripped_prefix, blueprint), None)]
    plain = _unwrapped(state, blueprint)
    whole = fit_state(plain, stripped_prefix, blueprint)
    prefixes = [""]
    if not _has_names(whole.state, "", blueprint):
        prefixes = _prefixes(plain, blueprint)
        if not prefixes:
            return [Part(whole, None)]
        whole = Fitted(plain, stripped_prefix, ())
    family = _family(prefixes)
    if family is None and len(prefixes) > 1:
        raise StackError(
            f"{label} holds the architecture {blueprint.name!r} under {' and under '.join(map(repr, prefixes))}.",
            hint="Say which one is the member (--strip-prefix).",
        )
    prefixes = family or prefixes
    dropped = _training_only(whole.state, prefixes, blueprint)
    _refuse_strangers(label, whole.state, prefixes, dropped)
    kept = {name: tensor for name, tensor in whole.state.items() if name not in dropped}
    fits = [_under(prefix, Fitted(kept, whole.stripped_prefix, whole.dropped), blueprint) for prefix in prefixes]
    if family is None:
        stacked = _unstacked(fits[0].state, blueprint)
        fits = [Fitted(one, fits[0].stripped_prefix, fits[0].dropped) for one in stacked] or fits
    has_many = family is not None or len(fits) > 1
    return [Part(fitted, index if has_many else None, dropped) for index, fitted in enumerate(fits)]


def _under(prefix: str, whole: Fitted, blueprint: Blueprint) -> Fitted:
    """What lies under a prefix, with the architecture's names."""
    if not prefix:
        return whole
    inner = {name.removeprefix(prefix): tensor for name, tensor in whole.state.items() if name.startswith(prefix)}
    fitted = fit_state(inner, (whole.stripped_prefix or "") + prefix, blueprint)
    return Fitted(fitted.state, fitted.stripped_prefix, tuple(dict.fromkeys((*whole.dropped, *fitted.dropped))))


def _unwrapped(state: Mapping[str, torch.Tensor], blueprint: Blueprint) -> dict[str, torch.Tensor]:
    """Take `_orig_mod.` and its kin out of the middle of names, where the architecture has none and nothing clashes."""
    if any(wrapper in name for name in blueprint.shapes for wrapper in WRAPPERS):
        return dict(state)
    short = {}
    for name, tensor in state.items():
        plain = f".{name}"
        for wrapper in WRAPPERS:
            plain = plain.replace(f".{wrapper}", ".")
        short[plain[1:]] = tensor
    return short if len(short) == len(state) else dict(state)


def _has_names(state: Mapping[str, torch.Tensor], prefix: str, blueprint: Blueprint) -> bool:
    """True if every name of the architecture is there under a prefix; of tied names one will do, counters may miss."""
    tied = {name: group for group in blueprint.ties for name in group}
    needed = [name for name in blueprint.shapes if not name.endswith(BATCH_COUNTER)]
    return all(any(prefix + other in state for other in tied.get(name, (name,))) for name in needed)


def _has_shapes(state: Mapping[str, torch.Tensor], prefix: str, blueprint: Blueprint) -> bool:
    return all(
        shape is None or prefix + name not in state or tuple(state[prefix + name].shape) == shape
        for name, shape in blueprint.shapes.items()
    )


def _prefixes(state: Mapping[str, torch.Tensor], blueprint: Blueprint) -> list[str]:
    """The prefixes under which the whole architecture is found: those whose shapes fit, or the only one there is."""
    tied = {name for group in blueprint.ties for name in group}
    names = [name for name in blueprint.shapes if not name.endswith(BATCH_COUNTER)]
    anchor = max((name for name in names if name not in tied), key=len, default=next(iter(blueprint.shapes)))
    found = [name.removesuffix(anchor) for name in state if name.endswith(f".{anchor}")]
    named = [prefix for prefix in found if _has_names(state, prefix, blueprint)]
    return [prefix for prefix in named if _has_shapes(state, prefix, blueprint)] or named * (len(named) == 1)


def _family(prefixes: Sequence[str]) -> list[str] | None:
    """The prefixes in order if they differ in one number alone, and that counts from 0; None if they do not."""
    if len(prefixes) < 2 and not re.search(r"(?:^|\.)0\.$", prefixes[0]):
        return None
    families: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for prefix in prefixes:
        for match in _NUMBER.finditer(prefix):
            families[prefix[: match.start()], prefix[match.end() :]][int(match[0])] = prefix
    for numbered in families.values():
        if sorted(numbered) == list(range(len(prefixes))):
            return [numbered[number] for number in sorted(numbered)]
    return None


def _training_only(state: Mapping[str, torch.Tensor], prefixes: Sequence[str], blueprint: Blueprint) -> tuple[str, ...]:
    """The names of a loss or a metric beside the members: `criterion.weight`, `val_acc.correct`."""
    known = {prefix + name for prefix in prefixes for name in blueprint.shapes}
    return tuple(
        name
        for name in state
        if name not in known and (name in AVERAGING_COUNTERS or _TRAINING_ONLY.fullmatch(name.partition(".")[0]))
    )


def _refuse_strangers(
    label: str, state: Mapping[str, torch.Tensor], prefixes: Sequence[str], dropped: Sequence[str]
) -> None:
    strangers = [name for name in state if not name.startswith(tuple(prefixes)) and name not in dropped]
    if strangers:
        where = repr(prefixes[0]) if len(prefixes) == 1 else f"{prefixes[0]!r} to {prefixes[-1]!r}"
        advice = f"say --strip-prefix {prefixes[0]} to leave them out" if len(prefixes) == 1 else "take them out"
        raise StackError(
            f"{label} holds the architecture under {where}, and outside of it "
            f"{join_some([repr(name) for name in strangers])}: expected nothing but the network.",
            hint=f"If they are no part of it, {advice}; else give the architecture that has them.",
        )


def _unstacked(state: Mapping[str, torch.Tensor], blueprint: Blueprint) -> list[dict[str, torch.Tensor]]:
    """One state dict a member if every tensor is N of the architecture's side by side; empty if not."""
    leading = {tuple(state[name].shape)[:1] for name in state}
    if len(leading) != 1 or leading == {()} or not set(state) <= blueprint.shapes.keys():
        return []
    (n_members,) = leading.pop()
    for name, shape in blueprint.shapes.items():
        if shape is None or (name in state and tuple(state[name].shape) != (n_members, *shape)):
            return []
    return [{name: tensor[index] for name, tensor in state.items()} for index in range(n_members)]
