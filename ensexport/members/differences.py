"""Options in which members differ, told apart: those that may shape the network, and those of the run alone.

Folds and seeds of one experiment differ in their seed, their fold and their output folder, as they must. A different
width or activation is another matter. The list below names what is known to change nothing in a trained network's
outputs; whatever is not on it may shape the network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ensexport.members.scalars import Scalar

ABSENT = "(not there)"
"""Stands for the value of a member that does not have the option."""

_HARMLESS = re.compile(
    r"""
    # which run it was
    (.*_)?seed | (k_?)?fold(_?(id|idx|index|number))? | split_?(id|idx|index|number) | local_rank
    | name | tag | tags | notes | comment | description | project | entity | user | host(name)?
    | (exp|experiment|run|job|trial|wandb)(_?(id|name|dir|path))? | (.*_)?commit(_hash)? | git_.*
    # when, where, with which library
    | date | time | timestamp | datetime | (start|end|created?|train(ing)?|wall)_(date|time)
    | (transformers|torch|pytorch|lightning|pytorch-lightning|timm|mmengine|python|cuda|numpy|code)_version
    | (.*_)?(dir|path|file|folder|filename) | (work|save|log|out|output|data)dir | output | (data_)?root
    | _?name_or_path | resume(_from)?(_checkpoint)?
    | device | devices | gpus? | world_size | num_workers | workers | pin_mem(ory)? | dist_(url|backend|init)
    # how it was trained
    | (.*_)?epochs? | (current_|global_)?(step|iter|iteration) | global_steps
    | (start|max|num_train|total|warmup)_(steps?|iters?|iterations?)
    | (.*_)?lr(_.*)? | (.*_)?learning_rate(_.*)? | sched(uler)? | warmup(_.*)?
    | weight_decay | momentum | (adam_)?(betas|beta_?[12]) | opt(im|imizer)? | opt_.* | (.*_)?batch_size
    | patience(_.*)? | grad(ient)?_(clip.*|accum.*|checkpointing) | clip_grad | amp | amp_(dtype|impl|level|backend)
    | label_smoothing | smoothing | fp16 | bf16 | (torch_)?dtype | params_dtype
    # does nothing once training is over, or is replaced by the weights, or is chosen when packing
    | (.*_)?p?drop(out)?(_(path|block|connect|head))?(_(rate|prob|p|ratio))? | (.*_)?layerdrop
    | initializer_(range|factor) | init_std | problem_type | finetuning_task
    | use_cache | _?attn_implementation.*
    """,
    re.VERBOSE | re.IGNORECASE,
)
_HARMLESS_PARTS = frozenset({"optimizer", "optim", "scheduler", "lr_scheduler", "logger", "wandb", "callbacks"})
"""Whatever lies below one of these is an option of the run."""
_SHAPING_NAMES = re.compile(
    r"(model|network|net|arch(itecture)?|backbone|encoder|decoder|head|norm|act(ivation)?)\.name"
)
"""`model.name` chooses a network, while `args.name` names a run."""


@dataclass(frozen=True)
class Differing:
    """Options in which members differ: each with every member's value, `ABSENT` where a member lacks it.

    Attributes:
        shaping: Those that may shape the network.
        harmless: Those that describe the run, as far as `is_harmless` knows them.
    """

    shaping: dict[str, tuple[Scalar, ...]]
    harmless: dict[str, tuple[Scalar, ...]]


def differing(facts: Sequence[Mapping[str, Scalar]]) -> Differing:
    """Return the options whose values differ, in the order in which they are first seen.

    Args:
        facts: One member each, flat.
    """
    names = dict.fromkeys(name for member in facts for name in member)
    values = {name: tuple(member.get(name, ABSENT) for member in facts) for name in names}
    found = {name: value for name, value in values.items() if len({comparison_key(one) for one in value}) > 1}
    return Differing(
        shaping={name: value for name, value in found.items() if not is_harmless(name)},
        harmless={name: value for name, value in found.items() if is_harmless(name)},
    )


def is_harmless(name: str) -> bool:
    """True if an option is known to describe the run and not the network it made.

    Args:
        name: As in `Facts.hyper_parameters` or `config.json`: `args.seed`, `hyper_parameters.optimizer.lr`.
    """
    *parents, last = name.split(".")
    if _SHAPING_NAMES.fullmatch(".".join([*parents[-1:], last]).lower()):
        return False
    if any(parent.lower() in _HARMLESS_PARTS for parent in parents):
        return True
    return _HARMLESS.fullmatch(last) is not None


def comparison_key(value: Scalar) -> tuple[str, object]:
    """Return what is equal for equal values; unlike with `==`, NaN equals NaN and True is not 1."""
    if isinstance(value, bool):
        return "bool", value
    if isinstance(value, int | float):
        return "number", value if value == value else "nan"  # noqa: PLR0124 - NaN is not itself
    return type(value).__name__, value
