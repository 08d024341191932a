"""The alternatives: each is made from a job and maps inputs to the members' outputs.

They run in processes of their own (`timing/worker.py`), so that one's spinning threads cannot slow another down. All
take NumPy arrays and return NumPy arrays of the form `(N, B, ...)`, as a user's script would have them; those that work
on buffers bound beforehand can also `bind` to inputs, so that only the runs themselves are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ensexport.compare import Array
from ensexport.timing.graphs import Feed, Job, maker_of


class BoundRun(Protocol):
    """An alternative whose inputs and outputs stay where the device has them."""

    def __call__(self, feed: Feed) -> dict[str, Array]:
        """Run and return the outputs as arrays."""

    def bind(self, feed: Feed) -> Callable[[], None]:
        """Put inputs on the device once; returns what runs on them, outputs left on the device."""


MAKERS = {
    "packed": "graph",
    "packed-again": "graph",
    "packed-bound": "bound.packed_bound",
    "packed-cuda-graph": "bound.packed_cuda_graph",
    "loop": "session_loops.loop",
    "loop-bound": "bound.loop_bound",
    "loop-cuda-graph": "bound.loop_cuda_graph",
    "strong-loop": "session_loops.strong_loop",
    "strong-loop-1-thread": "session_loops.strong_loop_1_thread",
    "threads": "session_loops.threads",
    "unrolled": "graph",
    "vmap-onnx": "graph",
    "torch-loop": "torch_loops.loop",
    "torch-vmap": "torch_loops.vmap",
    "torch-compile": "compiled.vmap",
    "torchscript": "graph",
    "onnx": "graph",
}


def find_maker(kind: str, path: str) -> str:
    """The name, as a job gives it, of what makes an alternative; `path` is the file of one that has one."""
    maker = MAKERS[kind]
    if maker == "graph":
        return maker_of(Path(path))
    module, _, function = maker.partition(".")
    return f"ensexport.bench.{module}:{function}"


def member_feeds(job: Job, feed: Feed) -> list[dict[str, Array]]:
    """The inputs of each member: its slice of a per-member input, all of a shared one."""
    return [
        {name: array[k] if name in job["per_member"] else array for name, array in feed.items()}
        for k in range(job["n_members"])
    ]


def stacked(job: Job, results: Sequence[Sequence[Array]]) -> dict[str, Array]:
    """The members' outputs, one array an output."""
    return {name: np.stack([result[i] for result in results]) for i, name in enumerate(job["outputs"])}
