"""What `torch.load` returned -> the state dict in it: which key it lies under, which prefix its names carry.

One table of container keys, by priority, so that a new trainer's format is one more line. A state dict is
taken whole or not at all: a value that is no tensor is named, never dropped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ensexport.errors import CheckpointError
from ensexport.members.wording import join_some, quote_path

CONTAINER_KEYS = (
    "state_dict_ema",  # timm train.py, averaged weights first
    "model_ema",  # torchvision references, timm
    "ema",
    "network_weights",  # nnU-Net v2
    "state_dict",  # Lightning, mmengine, timm
    "model_state_dict",  # the PyTorch tutorials
    "model",  # torchvision references, detectron2
    "module",  # DeepSpeed
    "net",
    "weights",
    "params",
)
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""

_SHAPING_OPTIONS = {"num_classes": "num_classes", "in_chans": "in_chans", "gp": "global_pool", "bn_eps": "bn_eps"}
"""Options of timm's train.py that say what the network is -> the argument each becomes."""

_HINT = "Save the weights with torch.save(model.state_dict(), ...)."


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


def extract_state(loaded: object, path: str) -> tuple[dict[str, torch.Tensor], str | None]:
    """Find the state dict in what a checkpoint file held.

    Args:
        loaded: What the file held.
        path: For messages.

    Returns:
        The state dict, and the key of `CONTAINER_KEYS` it lay under (None: the dict itself).

    Raises:
        CheckpointError: There is no state dict, or a value in it is no tensor; says what was found.
    """
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{quote_path(path)} holds no state dict: found {_describe(loaded)}.", hint=_HINT)
    if _has_tensor(loaded) and _odd_value(loaded) is None:
        return dict(loaded), None
    for key in CONTAINER_KEYS:
        inner = loaded.get(key)
        if isinstance(inner, dict) and _has_tensor(inner):
            _refuse_odd_value(inner, f"{key!r} in {quote_path(path)}")
            return dict(inner), key
    if _has_tensor(loaded):
        _refuse_odd_value(loaded, quote_path(path))
    raise CheckpointError(
        f"{quote_path(path)} holds no state dict: found {_describe(loaded)}.",
        hint=f"A state dict may stand alone or under one of {', '.join(CONTAINER_KEYS)}.",
    )


def strip_prefix(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str | None]:
    """Take `module.` and `_orig_mod.` off the names, each only where ALL names have it.

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
