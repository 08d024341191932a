"""A real Triton server, with a stand-in for its ONNX Runtime backend.

The wheel of `nvidia-pytriton` holds the `tritonserver` binary and the Python backend, and no other backend. A folder of
backends may hold one written in Python under any name: this one, called `onnxruntime`, runs the model file with ONNX
Runtime. So the server's own core reads a configuration as it was written: it checks it, makes the warm-up requests,
batches, labels, and refuses.

Source: https://github.com/triton-inference-server/backend/blob/main/docs/python_based_backends.md
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path

# NumPy 2 makes the Python backend return empty tensors: https://github.com/triton-inference-server/server/issues/7647
PACKAGES = ["nvidia-pytriton==0.7.0", "numpy==1.26.4"]
RUNTIME = ["onnxruntime-gpu>=1.24.3", "numpy==1.26.4"]
BACKEND = """
import json, os
import numpy as np
import onnxruntime
import triton_python_backend_utils as triton

class TritonPythonModel:
    def initialize(self, arguments):
        config = json.loads(arguments["model_config"])
        path = os.path.join(arguments["model_repository"], "1", config["default_model_filename"])
        if os.path.isdir(path):
            path = os.path.join(path, "model.onnx")
        self.is_batched = config["max_batch_size"] > 0
        self.names = [entry["name"] for entry in config["output"]]
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.scalars = {value.name for value in self.session.get_inputs() if not value.shape}

    def execute(self, requests):
        feeds = [{value.name(): value.as_numpy() for value in request.inputs()} for request in requests]
        if self.is_batched:
            feed = {name: np.concatenate([one[name] for one in feeds]) for name in feeds[0]}
            ends = np.cumsum([len(next(iter(one.values()))) for one in feeds])[:-1]
            answers = list(zip(*(np.split(array, ends) for array in self.session.run(self.names, feed))))
        else:
            answers = [self.session.run(self.names, self.as_file(feed)) for feed in feeds]
        return [
            triton.InferenceResponse(
                [triton.Tensor(name, np.array(np.atleast_1d(a))) for name, a in zip(self.names, answer)]
            )
            for answer in answers
        ]

    def as_file(self, feed):
        return {name: array.reshape(()) if name in self.scalars else array for name, array in feed.items()}
"""


class UnavailableError(Exception):
    """The server cannot be installed here."""


def install(home: Path) -> Path:
    """Install the server into an environment of its own; returns `home`, which holds `backends` and `env`.

    Raises:
        UnavailableError: No wheel for this platform, no package index, or no shared library of Python.
    """
    environment = home / "env"
    venv.create(environment, with_pip=True)
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet"]
    for command in ([*pip, "--no-deps", *PACKAGES], [*pip, *RUNTIME]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise UnavailableError(done.stderr[-500:])
    server = _server(home)
    (server / "bin" / "tritonserver").chmod(0o755)
    python = home / "backends" / "python"
    shutil.copytree(server / "backends" / "python", python)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = python / "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / version / stub.name, stub)
    stub.chmod(0o755)
    needs = subprocess.run(["ldd", stub], capture_output=True, text=True, env=_variables(home)).stdout
    missing = [line.strip() for line in needs.splitlines() if "not found" in line]
    if missing:
        raise UnavailableError(", ".join(missing))
    (home / "backends" / "onnxruntime").mkdir()
    (home / "backends" / "onnxruntime" / "model.py").write_text(BACKEND)
    return home


def _server(home: Path) -> Path:
    return next(home.glob("env/lib/python*/site-packages/pytriton/tritonserver"))


def _variables(home: Path) -> dict[str, str]:
    packages = _server(home).parents[1]
    return os.environ | {
        "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
        "PATH": f"{home / 'env' / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(packages),
        "VIRTUAL_ENV": str(home / "env"),
    }


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def running(home: Path, repository: Path) -> Iterator[str]:
    """Run the server on a model repository until the block ends; yields `127.0.0.1:PORT`.

    It stops by itself if a model cannot be loaded: then the block is not entered, and the error shows its log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = home / f"{repository.name}.log"
    command = [
        _server(home) / "bin" / "tritonserver", f"--model-repository={repository}",
        f"--backend-directory={home / 'backends'}", f"--http-port={port}", "--http-address=127.0.0.1",
        "--allow-grpc=false", "--allow-metrics=false", "--disable-auto-complete-config", "--exit-timeout-secs=10",
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=_variables(home))
    try:
        limit = time.monotonic() + 120
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > limit:
                raise AssertionError(f"the server did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
