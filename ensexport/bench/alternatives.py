"""The alternatives: each turns a job into a function that maps inputs to the members' outputs.

They run in processes of their own (`worker.py`), so that one's spinning threads cannot slow another down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Feed = Mapping[str, Array]
Run = Callable[[Feed], dict[str, Array]]
Job = Mapping[str, Any]

DESCRIPTIONS = {
    "packed": "the packed artifact, as its user calls it",
    "packed again": "the same once more: how far this row is from 1 is the noise",
    "loop": "N ONNX Runtime sessions in a Python loop, default options, as most people write it",
    "strong loop": "the same with one thread pool for all sessions and io-binding into one output buffer",
    "strong loop, 1 thread": "the same with single-threaded sessions and io-binding: no hand-over to fight for",
    "threads": "N single-threaded sessions in a thread pool",
    "unrolled": "one ONNX graph with N branches",
    "torch loop": "N modules in a Python loop, eager",
    "torch.vmap": "the stacked module, eager",
    "torchscript": "the packed graph as TorchScript",
    "onnx": "the packed graph in ONNX Runtime",
}


def member_feeds(job: Job, feed: Feed) -> list[dict[str, Array]]:
    """The inputs of each member."""
    return [
        {name: np.ascontiguousarray(array[k]) if name in job["per_member"] else array for name, array in feed.items()}
        for k in range(job["n_members"])
    ]


def packed(job: Job) -> Run:
    """One artifact, through its runner."""
    from ensexport.runtime.onnx_runner import OnnxRunner
    from ensexport.runtime.torch_runner import ExportedRunner, ScriptRunner

    path = Path(job["path"])
    if path.suffix == ".onnx":
        return OnnxRunner(path, provider=job["provider"]).run
    runner = ScriptRunner if path.suffix == ".ts" else ExportedRunner
    return runner(path, provider=job["provider"], output_names=tuple(job["outputs"])).run


def loop(job: Job) -> Run:
    """N sessions, default options, one after the other; results stacked as the user needs them."""
    import onnxruntime as ort

    from ensexport.runtime.onnx_runner import make_session

    sessions = [make_session(Path(path), job["provider"], ort.SessionOptions()) for path in job["member_paths"]]
    return _stacked(job, lambda feeds: [s.run(None, feed) for s, feed in zip(sessions, feeds, strict=True)])


def threads(job: Job) -> Run:
    """N single-threaded sessions at once."""
    import onnxruntime as ort

    from ensexport.runtime.onnx_runner import make_session

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [make_session(Path(path), job["provider"], options) for path in job["member_paths"]]
    pool = ThreadPoolExecutor(max_workers=min(len(sessions), job["threads"]))
    return _stacked(
        job,
        lambda feeds: list(pool.map(lambda pair: pair[0].run(None, pair[1]), zip(sessions, feeds, strict=True))),
    )


def strong_loop(job: Job) -> Run:
    """Io-binding into one output buffer, one thread pool for all sessions."""
    import onnxruntime as ort

    ort.set_global_thread_pool_sizes(job["threads"], 1)
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    return _bound_sessions(job, options)


def strong_loop_1_thread(job: Job) -> Run:
    """Io-binding into one output buffer, sessions without threads of their own."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return _bound_sessions(job, options)


def _bound_sessions(job: Job, options: Any) -> Run:
    from ensexport.runtime.onnx_runner import make_session

    sessions = [make_session(Path(path), job["provider"], options) for path in job["member_paths"]]
    names = [value.name for value in sessions[0].get_outputs()]
    buffers: dict[tuple[Any, ...], dict[str, Array]] = {}

    def run(feed: Feed) -> dict[str, Array]:
        feeds = member_feeds(job, feed)
        key = tuple(array.shape for array in feed.values())
        if key not in buffers:
            first = sessions[0].run(None, feeds[0])
            shapes = {name: (len(sessions), *value.shape) for name, value in zip(names, first, strict=True)}
            buffers[key] = {n: np.empty(shapes[n], v.dtype) for n, v in zip(names, first, strict=True)}
        outputs = buffers[key]
        for index, (session, member_feed) in enumerate(zip(sessions, feeds, strict=True)):
            binding = session.io_binding()
            for name, array in member_feed.items():
                binding.bind_cpu_input(name, array)
            for name in names:
                target = outputs[name][index]
                binding.bind_output(name, "cpu", 0, target.dtype, target.shape, target.ctypes.data)
            session.run_with_iobinding(binding)
        return outputs

    return run


def torch_loop(job: Job) -> Run:
    """N modules one after the other."""
    from ensexport.stacking.baseline import run_member

    members = _members(job)
    modules = [members.build(k) for k in range(len(members))]
    return _on_tensors(
        job, lambda feeds: [list(run_member(m, f).values()) for m, f in zip(modules, feeds, strict=True)]
    )


def torch_vmap(job: Job) -> Run:
    """The stacked module, as the PyTorch tutorial runs it."""
    import torch

    from ensexport.runtime.torch_runner import array_from_tensor, tensor_from_array
    from ensexport.stacking import stack
    from ensexport.stacking.binding import bind_inputs
    from ensexport.stacking.outputs import flatten_outputs

    members = _members(job)
    ensemble = stack(members, in_dims=dict.fromkeys(job["per_member"], 0))
    binding = bind_inputs(members.build(0), job["inputs"])

    def run(feed: Feed) -> dict[str, Array]:
        with torch.no_grad():
            outputs = binding.call(ensemble, [tensor_from_array(array) for array in feed.values()])
        values = [array_from_tensor(value) for value in flatten_outputs(outputs).values()]
        return dict(zip(job["outputs"], values, strict=True))

    return run


def _members(job: Job) -> Any:
    from ensexport.members import load_members

    return load_members(job["checkpoints"], job["model"], model_args=job["model_args"], base_dir=job["base_dir"])


def _stacked(job: Job, run_all: Callable[[list[dict[str, Array]]], list[list[Array]]]) -> Run:
    def run(feed: Feed) -> dict[str, Array]:
        results = run_all(member_feeds(job, feed))
        return {name: np.stack([result[i] for result in results]) for i, name in enumerate(job["outputs"])}

    return run


def _on_tensors(job: Job, run_all: Callable[[list[dict[str, Any]]], list[list[Any]]]) -> Run:
    import torch

    from ensexport.runtime.torch_runner import array_from_tensor, tensor_from_array

    def run(feed: Feed) -> dict[str, Array]:
        feeds = [{n: tensor_from_array(a) for n, a in own.items()} for own in member_feeds(job, feed)]
        results = run_all(feeds)
        stacked = [torch.stack([result[i] for result in results]) for i in range(len(job["outputs"]))]
        return {name: array_from_tensor(value) for name, value in zip(job["outputs"], stacked, strict=True)}

    return run


MAKERS: dict[str, Callable[[Job], Run]] = {
    "packed": packed,
    "packed again": packed,
    "loop": loop,
    "strong loop": strong_loop,
    "strong loop, 1 thread": strong_loop_1_thread,
    "threads": threads,
    "unrolled": packed,
    "torch loop": torch_loop,
    "torch.vmap": torch_vmap,
    "torchscript": packed,
    "onnx": packed,
}
