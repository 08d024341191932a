"""Alternatives in ONNX Runtime whose inputs and outputs stay on the device, with and without CUDA graphs.

The inputs are put there once, and one wait for the device ends each call, whatever the number of sessions: what is
timed is the work on the device and its launches, not the way of arrays to it and back. Nothing here is special to a
GPU, so that all but the graphs can run, and is tested, on a CPU.

Source: https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html and
https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ensexport.bench.alternatives import member_feeds
from ensexport.compare import Array
from ensexport.errors import UsageError
from ensexport.runtime.onnx_runner import OnnxRunner, tf32_options
from ensexport.timing.graphs import Feed, Job

_GRAPH_OPTIONS = {"cuda": {"enable_cuda_graph": "1"}, "tensorrt": {"trt_cuda_graph_enable": "1"}}
_NO_GRAPH = "-1"
_RUNS_TO_REPLAY = 4  # one or two to warm up, one to capture: what is compared must come from a replay


def packed_bound(job: Job) -> Bound:
    """The artifact."""
    return Bound(job, [job["path"]])


def packed_cuda_graph(job: Job) -> Bound:
    """The artifact, replayed as a CUDA graph."""
    return Bound(job, [job["path"]], with_graphs=True)


def loop_bound(job: Job) -> Bound:
    """N sessions."""
    return Bound(job, job["member_paths"], is_loop=True)


def loop_cuda_graph(job: Job) -> Bound:
    """N sessions, each replayed as a CUDA graph."""
    return Bound(job, job["member_paths"], is_loop=True, with_graphs=True)


class Bound:
    """One session, or one a member, on device tensors.

    Args:
        job: What to run.
        paths: One file for all members, or one a member.
        is_loop: One a member.
        with_graphs: Capture a CUDA graph a session and input shape, and replay it.
    """

    def __init__(self, job: Job, paths: Sequence[str], *, is_loop: bool = False, with_graphs: bool = False) -> None:
        self._job = job
        self._device = "cpu" if job["provider"] == "cpu" else "cuda"
        self._is_loop = is_loop
        provider = job["provider"]
        options = tf32_options(provider, tf32=job.get("tf32", False))
        if with_graphs:
            options |= _GRAPH_OPTIONS[provider]
        self._runners = [OnnxRunner(Path(path), provider=provider, provider_options=options) for path in paths]
        if not all(runner.is_plain for runner in self._runners):
            raise UsageError("bfloat16 inputs or outputs are not bound here: NumPy has no such dtype.")
        self._with_graphs = with_graphs
        self._ready: dict[tuple[tuple[int, ...], ...], _Bindings] = {}

    def __call__(self, feed: Feed) -> dict[str, Array]:
        """Run once and copy the outputs back."""
        step = self.bind(feed)
        for _ in range(_RUNS_TO_REPLAY if self._with_graphs else 1):
            step()
        outputs = self._ready[_shapes(feed)].outputs
        arrays = [{name: np.array(value.numpy()) for name, value in own.items()} for own in outputs]
        if not self._is_loop:
            return arrays[0]
        return {name: np.stack([own[name] for own in arrays]) for name in arrays[0]}

    def bind(self, feed: Feed) -> Callable[[], None]:
        """Put inputs on the device; returns what runs all sessions and waits for the device once.

        A CUDA graph works on the addresses it was captured with, so inputs of one shape always go to the same place.
        """
        shapes = _shapes(feed)
        if shapes not in self._ready:
            self._ready[shapes] = self._bindings(feed, number=len(self._ready) + 1)
        ready = self._ready[shapes]
        for own, values in zip(self._feeds(feed), ready.inputs, strict=True):
            for name, array in own.items():
                values[name].update_inplace(np.array(array, order="C"))
        runs = [(runner.session, binding) for runner, binding in zip(self._runners, ready.bindings, strict=True)]
        last = ready.bindings[-1]

        def step() -> None:
            for session, binding in runs:
                session.run_with_iobinding(binding, ready.options)
            last.synchronize_outputs()

        return step

    def _feeds(self, feed: Feed) -> list[dict[str, Array]]:
        return member_feeds(self._job, feed) if self._is_loop else [dict(feed)]

    def _bindings(self, feed: Feed, *, number: int) -> _Bindings:
        """Make room on the device for inputs and outputs of these shapes, and bind it."""
        ready = _Bindings(self._run_options(str(number), waits=False))
        shared = {name: self._value(array) for name, array in feed.items() if name not in self._job["per_member"]}
        for runner, own in zip(self._runners, self._feeds(feed), strict=True):
            inputs = {name: shared[name] if name in shared else self._value(array) for name, array in own.items()}
            # What shape the outputs have is seen in a run that is not captured.
            names = [value.name for value in runner.session.get_outputs()]
            arrays = runner.session.run(None, own, self._run_options(_NO_GRAPH, waits=True))
            outputs = {
                name: ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, self._device, 0)
                for name, array in zip(names, arrays, strict=True)
            }
            binding = runner.session.io_binding()
            for name, value in inputs.items():
                binding.bind_ortvalue_input(name, value)
            for name, value in outputs.items():
                binding.bind_ortvalue_output(name, value)
            ready.add(binding, inputs, outputs)
        return ready

    def _value(self, array: Array) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), self._device, 0)

    def _run_options(self, graph: str, *, waits: bool) -> ort.RunOptions:
        options = ort.RunOptions()
        if not waits:
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._with_graphs:
            options.add_run_config_entry("gpu_graph_id", graph)
        return options


@dataclass(frozen=True)
class _Bindings:
    """What is bound for inputs of one shape: an entry a session."""

    options: ort.RunOptions
    bindings: list[ort.IOBinding] = field(default_factory=list)
    inputs: list[dict[str, ort.OrtValue]] = field(default_factory=list)
    outputs: list[dict[str, ort.OrtValue]] = field(default_factory=list)

    def add(self, binding: ort.IOBinding, inputs: dict[str, ort.OrtValue], outputs: dict[str, ort.OrtValue]) -> None:
        """Add one session's."""
        self.bindings.append(binding)
        self.inputs.append(inputs)
        self.outputs.append(outputs)


def _shapes(feed: Feed) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape for array in feed.values())
