"""The alternatives: each turns a job into a function that maps inputs to the members' outputs.

They run in processes of their own (`worker.py`), so that one's spinning threads cannot slow another down. All take
NumPy arrays and return NumPy arrays of the form `(N, B, ...)`, as a user's script would have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ensexport.compare import Array

Feed = Mapping[str, Array]
Run = Callable[[Feed], dict[str, Array]]
Job = Mapping[str, Any]


def member_feeds(job: Job, feed: Feed) -> list[dict[str, Array]]:
    """The inputs of each member: its slice of a per-member input, all of a shared one."""
    return [
        {name: array[k] if name in job["per_member"] else array for name, array in feed.items()}
        for k in range(job["n_members"])
    ]


def packed(job: Job) -> Run:
    """One artifact, through its runner."""
    path = Path(job["path"])
    if path.suffix == ".onnx":
        from ensexport.runtime.onnx_runner import OnnxRunner

        return OnnxRunner(path, provider=job["provider"]).run

    from ensexport.runtime.torch_runner import ExportedRunner, ScriptRunner

    runner = ScriptRunner if path.suffix == ".ts" else ExportedRunner
    return runner(path, provider=job["provider"], output_names=tuple(job["outputs"])).run


def loop(job: Job) -> Run:
    """N sessions, default options, one after the other; results stacked as the user needs them."""
    sessions = _sessions(job)

    def run(feed: Feed) -> dict[str, Array]:
        feeds = member_feeds(job, feed)
        return _stacked(job, [session.run(None, own) for session, own in zip(sessions, feeds, strict=True)])

    return run


def threads(job: Job) -> Run:
    """N single-threaded sessions at once."""
    sessions = _sessions(job, intra_op_num_threads=1)
    pool = ThreadPoolExecutor(max_workers=min(len(sessions), job["threads"]))

    def run(feed: Feed) -> dict[str, Array]:
        feeds = member_feeds(job, feed)
        return _stacked(job, list(pool.map(lambda session, own: session.run(None, own), sessions, feeds)))

    return run


def strong_loop(job: Job) -> Run:
    """One thread pool for all sessions, buffers bound once."""
    import onnxruntime as ort

    # From here on every session of this process must take the shared pool.
    ort.set_global_thread_pool_sizes(job["threads"], 1)
    return _bound(job, _sessions(job, use_per_session_threads=False))


def strong_loop_1_thread(job: Job) -> Run:
    """Sessions without threads of their own, buffers bound once: no thread to hand work to or to wait for."""
    return _bound(job, _sessions(job, intra_op_num_threads=1))


def _sessions(job: Job, **options: Any) -> list[Any]:
    import onnxruntime as ort

    from ensexport.runtime.onnx_runner import make_session

    session_options = ort.SessionOptions()
    for name, value in options.items():
        setattr(session_options, name, value)
    return [make_session(Path(path), job["provider"], session_options) for path in job["member_paths"]]


def _bound(job: Job, sessions: Sequence[Any]) -> Run:
    """Run sessions through io-bindings made once per input shape; each writes its part of one output buffer.

    A shared input is copied once into a buffer that all sessions read; binding it anew for each would cost more.
    A per-member slice is bound where it lies.
    """
    ready: dict[tuple[tuple[int, ...], ...], tuple[list[Any], Feed, dict[str, Array]]] = {}

    def run(feed: Feed) -> dict[str, Array]:
        shapes = tuple(array.shape for array in feed.values())
        if shapes not in ready:
            ready[shapes] = _bindings(job, sessions, feed)
        bindings, shared, outputs = ready[shapes]
        for name, buffer in shared.items():
            np.copyto(buffer, feed[name])
        for index, (session, binding) in enumerate(zip(sessions, bindings, strict=True)):
            for name in job["per_member"]:
                binding.bind_cpu_input(name, feed[name][index])
            session.run_with_iobinding(binding)
        return outputs

    return run


def _bindings(job: Job, sessions: Sequence[Any], feed: Feed) -> tuple[list[Any], Feed, dict[str, Array]]:
    """Make the bindings for the shapes of `feed`; returns them, the shared input buffers and the output buffers."""
    shared = {name: np.array(array) for name, array in feed.items() if name not in job["per_member"]}
    first = sessions[0].run(None, member_feeds(job, feed)[0])
    outputs = {
        name: np.empty((len(sessions), *value.shape), value.dtype)
        for name, value in zip(job["outputs"], first, strict=True)
    }
    bindings = []
    for index, session in enumerate(sessions):
        binding = session.io_binding()
        for name, buffer in shared.items():
            binding.bind_cpu_input(name, buffer)
        for name, buffer in outputs.items():
            part = buffer[index : index + 1]  # a slice: one element of a 1-D array would be a copy
            binding.bind_output(name, "cpu", 0, buffer.dtype, buffer.shape[1:], part.ctypes.data)
        bindings.append(binding)
    return bindings, shared, outputs


def torch_loop(job: Job) -> Run:
    """N modules one after the other."""
    import torch

    from ensexport.runtime.torch_runner import array_from_tensor, tensor_from_array
    from ensexport.stacking.binding import bind_inputs
    from ensexport.stacking.outputs import flatten_outputs

    members = _members(job)
    device = _device(job)
    modules = [members.build(k).to(device) for k in range(len(members))]
    binding = bind_inputs(modules[0], job["inputs"])

    def run(feed: Feed) -> dict[str, Array]:
        tensors = [tensor_from_array(array).to(device) for array in feed.values()]
        is_per_member = [name in job["per_member"] for name in feed]
        results = []
        with torch.no_grad():
            for k, module in enumerate(modules):
                own = [t[k] if split else t for t, split in zip(tensors, is_per_member, strict=True)]
                results.append(list(flatten_outputs(binding.call(module, own)).values()))
            stacked = [torch.stack([result[i] for result in results]) for i in range(len(job["outputs"]))]
        return {name: array_from_tensor(value) for name, value in zip(job["outputs"], stacked, strict=True)}

    return run


def torch_vmap(job: Job) -> Run:
    """The stacked module, as the PyTorch tutorial runs it."""
    import torch

    from ensexport.runtime.torch_runner import array_from_tensor, tensor_from_array
    from ensexport.stacking import stack
    from ensexport.stacking.binding import bind_inputs
    from ensexport.stacking.outputs import flatten_outputs

    members = _members(job)
    device = _device(job)
    binding = bind_inputs(members.build(0), job["inputs"])
    call_order = [*binding.positions, *(i for i, keyword in enumerate(binding.keywords) if keyword is not None)]
    in_dims = tuple(0 if binding.names[i] in job["per_member"] else None for i in call_order)
    ensemble = stack(members, in_dims=in_dims).to(device)

    def run(feed: Feed) -> dict[str, Array]:
        with torch.no_grad():
            outputs = binding.call(ensemble, [tensor_from_array(array).to(device) for array in feed.values()])
        values = [array_from_tensor(value) for value in flatten_outputs(outputs).values()]
        return dict(zip(job["outputs"], values, strict=True))

    return run


def _device(job: Job) -> Any:
    import torch

    return torch.device("cpu" if job["provider"] == "cpu" else "cuda")


def _members(job: Job) -> Any:
    from ensexport.members import load_members

    return load_members(job["checkpoints"], job["model"], model_args=job["model_args"], base_dir=job["base_dir"])


def _stacked(job: Job, results: Sequence[Sequence[Array]]) -> dict[str, Array]:
    return {name: np.stack([result[i] for result in results]) for i, name in enumerate(job["outputs"])}


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
