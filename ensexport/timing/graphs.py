"""What a worker process can time by itself: one file, through its runner. NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ensexport.compare import Array

Feed = Mapping[str, Array]
Job = Mapping[str, Any]
Run = Callable[[Feed], dict[str, Array]]


def onnx(job: Job) -> Run:
    """An ONNX file: the job's `path`, `provider` and, where float32 products may be computed in TF32, `tf32`."""
    from ensexport.runtime.onnx_runner import OnnxRunner, tf32_options

    options = tf32_options(job["provider"], tf32=job.get("tf32", False))
    return OnnxRunner(Path(job["path"]), provider=job["provider"], provider_options=options).run


def torch(job: Job) -> Run:
    """A TorchScript or `.pt2` file: the job's `path`, `provider` and `outputs`."""
    from ensexport.runtime.torch_runner import ExportedRunner, ScriptRunner

    path = Path(job["path"])
    runner = ScriptRunner if path.suffix == ".ts" else ExportedRunner
    return runner(path, provider=job["provider"], output_names=tuple(job["outputs"])).run


def maker_of(path: Path) -> str:
    """The name, as a job gives it, of what runs a file."""
    return f"{__name__}:{'onnx' if path.suffix == '.onnx' else 'torch'}"
