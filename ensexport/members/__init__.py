"""Checkpoint files and an architecture -> members: discovery, safe loading, configuration.

Names are looked up on first use, so that `ensexport.members.config` can be imported without loading torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ensexport.members.agreement import check_states_agree
    from ensexport.members.architecture import Architecture, resolve_architecture
    from ensexport.members.config import Config, FoundConfig, find_config, load_config, parse_model_args
    from ensexport.members.discovery import Discovery, find_checkpoints
    from ensexport.members.loading import load_members
    from ensexport.members.member import Member, Members
    from ensexport.members.reading import Checkpoint, read_checkpoint
    from ensexport.members.selection import Selection
    from ensexport.members.tensors import find_nonfinite, weights_digest
    from ensexport.members.trust import Trust

__all__ = [
    "Architecture",
    "Checkpoint",
    "Config",
    "Discovery",
    "FoundConfig",
    "Member",
    "Members",
    "Selection",
    "Trust",
    "check_states_agree",
    "find_checkpoints",
    "find_config",
    "find_nonfinite",
    "load_config",
    "load_members",
    "parse_model_args",
    "read_checkpoint",
    "resolve_architecture",
    "weights_digest",
]

_HOMES = {
    "Architecture": "architecture",
    "Checkpoint": "reading",
    "Config": "config",
    "Discovery": "discovery",
    "FoundConfig": "config",
    "Member": "member",
    "Members": "member",
    "Selection": "selection",
    "Trust": "trust",
    "check_states_agree": "agreement",
    "find_checkpoints": "discovery",
    "find_config": "config",
    "find_nonfinite": "tensors",
    "load_config": "config",
    "load_members": "loading",
    "parse_model_args": "config",
    "read_checkpoint": "reading",
    "resolve_architecture": "architecture",
    "weights_digest": "tensors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
