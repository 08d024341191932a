"""Alternatives in ONNX Runtime: one session a member. NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort

from ensexport.bench.alternatives import member_feeds, stacked
from ensexport.compare import Array
from ensexport.runtime.onnx_runner import OnnxRunner, tf32_options
from ensexport.timing.graphs import Feed, Job, Run


def loop(job: Job) -> Run:
    """N sessions, default options, one after the other; results stacked as the user needs them."""
    calls = [_call(runner) for runner in _runners(job)]

    def run(feed: Feed) -> dict[str, Array]:
        feeds = member_feeds(job, feed)
        return stacked(job, [call(own) for call, own in zip(calls, feeds, strict=True)])

    return run


def threads(job: Job) -> Run:
    """N single-threaded sessions at once."""
    calls = [_call(runner) for runner in _runners(job, intra_op_num_threads=1)]
    pool = ThreadPoolExecutor(max_workers=min(len(calls), job["threads"]))

    def run(feed: Feed) -> dict[str, Array]:
        feeds = member_feeds(job, feed)
        return stacked(job, list(pool.map(lambda call, own: call(own), calls, feeds)))

    return run


def strong_loop(job: Job) -> Run:
    """One thread pool for all sessions, buffers bound once."""
    # From here on every session of this process must take the shared pool.
    ort.set_global_thread_pool_sizes(job["threads"], 1)
    return _bound(job, _runners(job, use_per_session_threads=False))


def strong_loop_1_thread(job: Job) -> Run:
    """Sessions without threads of their own, buffers bound once: no thread to hand work to or to wait for."""
    return _bound(job, _runners(job, intra_op_num_threads=1))


def _runners(job: Job, **options: Any) -> list[OnnxRunner]:
    session_options = ort.SessionOptions()
    for name, value in options.items():
        setattr(session_options, name, value)
    common: dict[str, Any] = {"provider": job["provider"], "provider_options": _provider_options(job)}
    return [OnnxRunner(Path(path), options=session_options, **common) for path in job["member_paths"]]


def _provider_options(job: Job) -> dict[str, str]:
    return tf32_options(job["provider"], tf32=job.get("tf32", False))


def _call(runner: OnnxRunner) -> Callable[[Feed], Sequence[Array]]:
    """`session.run`, as people call it; it takes no bfloat16, which the runner does."""
    if runner.is_plain:
        session = runner.session
        return lambda feed: session.run(None, feed)
    return lambda feed: list(runner.run(feed).values())


def _bound(job: Job, runners: Sequence[OnnxRunner]) -> Run:
    """Run sessions through io-bindings made once per input shape; each writes its part of one output buffer.

    A shared input is copied once into a buffer that all sessions read; binding it anew for each would cost more.
    A per-member slice is bound where it lies.
    """
    ready: dict[tuple[tuple[int, ...], ...], tuple[list[Any], Feed, dict[str, Array]]] = {}
    sessions = [runner.session for runner in runners]

    def run(feed: Feed) -> dict[str, Array]:
        shapes = tuple(array.shape for array in feed.values())
        if shapes not in ready:
            ready[shapes] = _bindings(job, runners, feed)
        bindings, shared, outputs = ready[shapes]
        for name, buffer in shared.items():
            np.copyto(buffer, feed[name])
        for index, (session, binding) in enumerate(zip(sessions, bindings, strict=True)):
            for name in job["per_member"]:
                _bind_input(binding, name, feed[name][index : index + 1])
            session.run_with_iobinding(binding)
        return outputs

    return run


def _bindings(job: Job, runners: Sequence[OnnxRunner], feed: Feed) -> tuple[list[Any], Feed, dict[str, Array]]:
    """Make the bindings for the shapes of `feed`; returns them, the shared input buffers and the output buffers."""
    shared = {name: np.array(array) for name, array in feed.items() if name not in job["per_member"]}
    first = runners[0].run(member_feeds(job, feed)[0])
    outputs = {name: np.empty((len(runners), *value.shape), value.dtype) for name, value in first.items()}
    bindings = []
    for index, runner in enumerate(runners):
        binding = runner.session.io_binding()
        for name, buffer in shared.items():
            _bind_input(binding, name, buffer[np.newaxis])
        for name, buffer in outputs.items():
            part = buffer[index : index + 1]  # a slice: one element of a 1-D array would be a copy
            binding.bind_output(name, "cpu", 0, element_type(buffer), buffer.shape[1:], part.ctypes.data)
        bindings.append(binding)
    return bindings, shared, outputs


def _bind_input(binding: Any, name: str, part: Array) -> None:
    """Bind the one row of `part` where it lies."""
    if part.flags.c_contiguous and part.dtype != ml_dtypes.bfloat16:
        binding.bind_cpu_input(name, part[0] if part.ndim > 1 else part.reshape(()))
    else:
        binding.bind_input(name, "cpu", 0, element_type(part), part.shape[1:], part.ctypes.data)


def element_type(array: Array) -> Any:
    """A dtype as io-bindings take it."""
    return onnx.TensorProto.BFLOAT16 if array.dtype == ml_dtypes.bfloat16 else array.dtype
