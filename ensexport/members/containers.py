"""What a checkpoint file held -> the state dict in it: which key it lies under, which prefix its names carry.

One table of container keys, by priority, so that a new trainer's format is one more line. A state dict is
taken whole or not at all: a value that is no tensor is named, never dropped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ensexport.errors import CheckpointError, NoWeightsError
from ensexport.members.selection import NO_SELECTION, Kind, Selection
from ensexport.members.wording import join_some, quote_path

CONTAINER_KEYS: Mapping[str, Kind] = {
    "state_dict_ema": "ema",  # timm train.py, averaged weights first
    "model_ema": "ema",  # torchvision references, timm
    "ema": "ema",  # ultralytics
    "network_weights": "raw",  # nnU-Net v2
    "state_dict": "raw",  # Lightning, mmengine, timm
    "model_state_dict": "raw",  # the PyTorch tutorials
    "model": "raw",  # torchvision references, detectron2, accelerate
    "module": "raw",  # DeepSpeed
    "net": "raw",
    "weights": "raw",
    "params": "raw",
}
"""By priority: where a state dict lies, and whether its weights are averaged over training."""

_RAW_BESIDE_AVERAGE: tuple[str, ...] = (
    "ema_state_dict",  # mmengine's EMAHook swaps the two when it saves
    "current_model_state",  # Lightning's WeightAveraging
)
"""Keys of raw weights beside which `state_dict` holds the average."""

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing put into names, at any depth."""

PREFIXES = ("module.", *WRAPPERS)
"""What DataParallel and those put before every name."""

_SHAPING_OPTIONS = {"num_classes": "num_classes", "in_chans": "in_chans", "gp": "global_pool", "bn_eps": "bn_eps"}
"""Options of timm's train.py that say what the network is -> the argument each becomes."""

_HINT = "Save the weights with torch.save(model.state_dict(), ...)."


@dataclass(frozen=True)
class Extracted:
    """The state dict that was chosen.

    Attributes:
        state: Its tensors by name, as they lie in the file.
        container_key: The key it lay under; None if it stood alone.
        weights: `ema` or `raw` where the file holds both; else None.
        others: Other keys that hold weights as well.
    """

    state: dict[str, torch.Tensor]
    container_key: str | None
    weights: Kind | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Origin:
    """What a checkpoint of timm's train.py says about its own network; used only where the user asks for it.

    Attributes:
        arch: The network's name.
        model_args: Those of its training options that shape it.
    """

    arch: str
    model_args: Mapping[str, Any]


def read_origin(loaded: object) -> Origin | None:
    """Return what a checkpoint says its network is; None if it says nothing.

    Args:
        loaded: What the file held.

    Source: timm 1.0.31 utils/checkpoint_saver.py and train.py.
    """
    arch = loaded.get("arch") if isinstance(loaded, dict) else None
    if not isinstance(loaded, dict) or not isinstance(arch, str):
        return None
    options = loaded.get("args")
    said = vars(options) if isinstance(options, argparse.Namespace) else {}
    extra = said.get("model_kwargs")
    model_args = {new: said[old] for old, new in _SHAPING_OPTIONS.items() if said.get(old) is not None}
    if isinstance(extra, dict):
        model_args |= {name: value for name, value in extra.items() if isinstance(name, str)}
    return Origin(arch, model_args)


def extract_state(loaded: object, path: str, selection: Selection = NO_SELECTION) -> Extracted:
    """Find the state dict in what a checkpoint file held.

    Args:
        loaded: What the file held. A module, which only a trusted pickle holds, stands for its state dict.
        path: For messages.
        selection: What the user said.

    Raises:
        NoWeightsError: The file is an optimizer's state.
        CheckpointError: There is no state dict where it is looked for, or a value in it is no tensor; says what
            was found and which keys hold weights.
    """
    if selection.key is not None:
        return Extracted(_under_key(loaded, selection.key, path), selection.key)
    if isinstance(loaded, nn.Module):
        return Extracted(loaded.state_dict(), None)
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{quote_path(path)} holds no state dict: found {_describe(loaded)}.", hint=_HINT)
    if _has_tensor(loaded) and _odd_value(loaded) is None:
        if selection.weights == "ema":
            raise _no_such_weights("ema", ["a bare state dict"], path)
        return Extracted(dict(loaded), None)
    found = list(_containers(loaded)) or list(_inner_containers(loaded))
    if found:
        return _choose(found, path, selection)
    raise _nothing_found(loaded, path)


def strip_prefix(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str | None]:
    """Take off what wrappers put before the names (`PREFIXES`), each only where ALL names have it.

    Returns:
        The state dict and what was taken off, for example `module._orig_mod.`; None if nothing was.
    """
    taken = ""
    while found := _common_prefix(state, taken):
        taken += found
    return {name[len(taken) :]: tensor for name, tensor in state.items()}, taken or None


def _common_prefix(state: Mapping[str, torch.Tensor], taken: str) -> str | None:
    for prefix in PREFIXES:
        full = taken + prefix
        if state and all(name.startswith(full) and len(name) > len(full) for name in state):
            return prefix
    return None


def _under_key(loaded: object, key: str, path: str) -> dict[str, torch.Tensor]:
    """What lies under a key that the user named: the whole text as one key, or dots for keys inside of keys."""
    inner: object = loaded
    if isinstance(loaded, dict) and key in loaded:
        inner = loaded[key]
    else:
        for part in key.split("."):
            inner = inner.get(part) if isinstance(inner, dict) else None
    if isinstance(inner, nn.Module):
        return inner.state_dict()
    if not isinstance(inner, dict) or not _has_tensor(inner):
        raise CheckpointError(
            f"{quote_path(path)} holds no state dict under {key!r}: found {_describe(loaded)}.",
            hint="Name one of its keys, with dots for keys inside of keys.",
        )
    _refuse_odd_value(inner, f"{key!r} in {quote_path(path)}")
    return dict(inner)


def _containers(loaded: Mapping[Any, Any]) -> Iterator[tuple[str, Kind, Mapping[Any, Any]]]:
    """The known keys that hold weights, by priority: key, kind, what lies there."""
    kinds: dict[str, Kind] = dict(CONTAINER_KEYS)
    if any(_weights_in(loaded.get(key)) for key in _RAW_BESIDE_AVERAGE):
        kinds |= {"state_dict": "ema", **dict.fromkeys(_RAW_BESIDE_AVERAGE, "raw")}
    for key, kind in kinds.items():
        inner = _weights_in(loaded.get(key))
        if inner is not None:
            yield key, kind, inner


def _inner_containers(loaded: Mapping[Any, Any]) -> Iterator[tuple[str, Kind, Mapping[Any, Any]]]:
    """The same one level deeper, where only one key holds such a dict: an application's state in a distributed one."""
    inner = {str(key): list(_containers(value)) for key, value in loaded.items() if isinstance(value, dict)}
    holders = [key for key, found in inner.items() if found]
    if len(holders) == 1:
        yield from ((f"{holders[0]}.{key}", kind, value) for key, kind, value in inner[holders[0]])


def _weights_in(value: object) -> Mapping[Any, Any] | None:
    """The state dict that a value is, or that a module has; None if it is something else."""
    if isinstance(value, nn.Module):
        return value.state_dict()
    return value if isinstance(value, dict) and _has_tensor(value) else None


def _choose(found: list[tuple[str, Kind, Mapping[Any, Any]]], path: str, selection: Selection) -> Extracted:
    wanted = [item for item in found if selection.weights in (None, item[1])]
    if not wanted:
        raise _no_such_weights(selection.weights, [repr(key) for key, _, _ in found], path)
    key, kind, inner = wanted[0]
    _refuse_odd_value(inner, f"{key!r} in {quote_path(path)}")
    has_both = len({other for _, other, _ in found}) > 1
    return Extracted(
        dict(inner), key, kind if has_both else None, tuple(other for other, _, _ in found if other != key)
    )


def _no_such_weights(wanted: str | None, found: list[str], path: str) -> CheckpointError:
    meaning = "averaged" if wanted == "ema" else "raw"
    return CheckpointError(
        f"{quote_path(path)} holds no {meaning} weights (--weights {wanted}): found {join_some(found)}.",
        hint="Leave --weights out, or name the key (--key).",
    )


def _nothing_found(loaded: Mapping[Any, Any], path: str) -> CheckpointError:
    what = f"{quote_path(path)} holds no state dict: found {_describe(loaded)}."
    others = [str(key) for key, value in loaded.items() if isinstance(value, dict) and _is_state_dict(value)]
    if {"state", "param_groups"} <= loaded.keys():
        return NoWeightsError(f"{quote_path(path)} holds an optimizer's state, no weights.", hint="Leave the file out.")
    if others:
        return CheckpointError(what, hint=f"Say which holds the weights: --key {' or --key '.join(others[:3])}.")
    if _has_tensor(loaded):
        try:
            _refuse_odd_value(loaded, quote_path(path))
        except CheckpointError as error:
            return error
    return CheckpointError(what, hint=f"A state dict may stand alone or under one of {', '.join(CONTAINER_KEYS)}.")


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    return _has_tensor(value) and _odd_value(value) is None


def _has_tensor(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(item, torch.Tensor) for item in value.values())


def _odd_value(value: Mapping[Any, Any]) -> tuple[Any, Any] | None:
    """The first entry that does not belong in a state dict."""
    for name, item in value.items():
        if not (isinstance(name, str) and isinstance(item, torch.Tensor)):
            return name, item
    return None


def _refuse_odd_value(value: Mapping[Any, Any], where: str) -> None:
    odd = _odd_value(value)
    if odd is not None:
        name, item = odd
        raise CheckpointError(
            f"{where} is no plain state dict: expected only tensors, found {name!r}, {_describe(item)}.",
            hint=_HINT,
        )


def _describe(value: object) -> str:
    """Say what a value is, in few words: `a list of 3`, `a dict with 'epoch' (an int)`."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        items = [f"{key!r} ({_describe_briefly(item)})" for key, item in value.items()]
        return f"a dict with {join_some(items, limit=8)}" if items else "an empty dict"
    return _describe_briefly(value)


def _describe_briefly(value: object) -> str:
    kind = type(value).__name__
    if value is None:
        return "None"
    size = f" of {len(value)}" if isinstance(value, dict | list | tuple | set) else ""
    return f"{'an' if kind[0] in 'aeio' else 'a'} {kind}{size}"
