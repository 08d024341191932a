"""The alternatives' names and what they stand for. Light: a misspelt name is refused before torch is loaded."""

from __future__ import annotations

from pathlib import Path

from ensexport.errors import UsageError

SESSION_LOOPS = ("loop", "strong loop", "strong loop, 1 thread", "threads")
DEFAULT_ALTERNATIVES = (*SESSION_LOOPS, "unrolled", "torch loop", "torch.vmap")

DESCRIPTIONS = {
    "packed": "the artifact, as its user calls it",
    "packed again": "the same once more: how far this row is from 1 is the noise",
    "loop": "N ONNX Runtime sessions in a Python loop, default options, as most people write it",
    "strong loop": "the same with one thread pool for all sessions and buffers bound once",
    "strong loop, 1 thread": "the same with single-threaded sessions and buffers bound once",
    "threads": "N single-threaded sessions in a thread pool",
    "unrolled": "one ONNX graph with N branches",
    "torch loop": "N modules in a Python loop, eager",
    "torch.vmap": "the stacked module, eager",
    "torchscript": "the packed graph as TorchScript",
    "onnx": "the packed graph in ONNX Runtime",
}


def other_format(artifact: str | Path) -> str:
    """The packed graph in the other runtime, measured beside the artifact: `torchscript` or `onnx`."""
    return "torchscript" if Path(artifact).suffix == ".onnx" else "onnx"


def check_alternative(name: str, artifact: str | Path) -> None:
    """Refuse a name that is no alternative to the artifact.

    Raises:
        UsageError: Lists the names.
    """
    known = (*DEFAULT_ALTERNATIVES, other_format(artifact))
    if name not in known:
        raise UsageError(f"unknown alternative {name!r}: expected one of {', '.join(map(repr, known))}.")
