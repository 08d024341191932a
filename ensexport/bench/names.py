"""The alternatives' names and what they stand for. Light: a misspelt name is refused before torch is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ensexport.errors import UsageError

SESSION_LOOPS = ("loop", "strong-loop", "strong-loop-1-thread", "threads")
BOUND_LOOPS = ("loop-bound", "loop-cuda-graph")
BOUND = ("packed-bound", "packed-cuda-graph", *BOUND_LOOPS)
OWN_LAYOUT = ("packed", "packed-again", "packed-bound", "packed-cuda-graph")
DEFAULT_ALTERNATIVES = (*SESSION_LOOPS, "unrolled", "vmap-onnx", "torch-loop", "torch-vmap", "torch-compile")
MODES = ("interleaved", "isolated")

DESCRIPTIONS = {
    "packed": "the artifact, as its user calls it",
    "packed-again": "the same once more: how far this row is from 1 is the noise",
    "packed-bound": "the artifact with its inputs and outputs bound once, on the device",
    "packed-cuda-graph": "the same, replayed as a CUDA graph",
    "loop": "N ONNX Runtime sessions in a Python loop, default options, as most people write it",
    "loop-bound": "N sessions with inputs and outputs bound once, on the device; one wait for the device at the end",
    "loop-cuda-graph": "the same, each replayed as a CUDA graph",
    "strong-loop": "N sessions with one thread pool for all and buffers bound once",
    "strong-loop-1-thread": "N single-threaded sessions with buffers bound once",
    "threads": "N single-threaded sessions in a thread pool",
    "unrolled": "one ONNX graph with N branches",
    "vmap-onnx": "torch.vmap of the stacked modules, exported by torch.onnx.export for this one batch size",
    "torch-loop": "N modules in a Python loop, eager",
    "torch-vmap": "the stacked module, eager",
    "torch-compile": "torch.vmap of the stacked modules, through torch.compile",
    "torchscript": "the packed graph as TorchScript",
    "onnx": "the packed graph in ONNX Runtime",
}


def other_format(artifact: str | Path) -> str:
    """The packed graph in the other runtime, measured beside the artifact: `torchscript` or `onnx`."""
    return "torchscript" if Path(artifact).suffix == ".onnx" else "onnx"


def default_alternatives(artifact: str | Path, provider: str) -> tuple[str, ...]:
    """What an artifact is compared with if nothing else is asked for."""
    bound = () if provider == "cpu" else known_bound(artifact)
    return (*bound, *DEFAULT_ALTERNATIVES, other_format(artifact))


def known_bound(artifact: str | Path) -> tuple[str, ...]:
    """The rows with buffers bound on the device; only ONNX Runtime has such bindings."""
    return BOUND if Path(artifact).suffix == ".onnx" else BOUND_LOOPS


def check_alternative(name: str, artifact: str | Path, provider: str = "cpu") -> None:
    """Refuse a name that is no alternative to the artifact.

    Raises:
        UsageError: Lists the names, or says that there are no CUDA graphs on a CPU.
    """
    known = (*DEFAULT_ALTERNATIVES, other_format(artifact), *known_bound(artifact))
    if name not in known:
        raise UsageError(f"unknown alternative {name!r}: expected one of {', '.join(map(repr, known))}.")
    if name.endswith("cuda-graph") and provider == "cpu":
        raise UsageError(f"cannot run {name!r} on the CPU.", hint="Add --provider cuda, or leave it out.")


def check_members(sizes: Sequence[int], n_members: int) -> None:
    """Refuse an ensemble size that there are no members for.

    Raises:
        UsageError: Names it.
    """
    wrong = [size for size in sizes if not 1 <= size <= n_members]
    if wrong:
        raise UsageError(f"cannot measure {wrong[0]} members: expected 1 to {n_members}, the artifact's own number.")
