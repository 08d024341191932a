"""Serve a packed file with KServe's Python SDK over the Open Inference protocol (v2), at http://127.0.0.1:PORT.

Names, dtypes and shapes of the v2 metadata come out of the file itself, so the same script serves any packed file.
"""

import argparse
import asyncio
import os
import signal
import socket
import threading

import numpy as np
import onnxruntime as ort
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.errors import InvalidInput
from kserve.protocol.rest.server import RESTServer
from kserve.utils.numpy_codec import from_np_dtype
from kserve.utils.utils import generate_uuid

DTYPES = {"tensor(float)": "FP32", "tensor(float16)": "FP16", "tensor(double)": "FP64", "tensor(int64)": "INT64"}
DTYPES |= {"tensor(int32)": "INT32", "tensor(bool)": "BOOL"}


class PackedEnsemble(Model):
    """One ONNX session behind one model name."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        self.path = path

    def load(self) -> bool:
        """Make the session; only then is the model ready."""
        self.session = ort.InferenceSession(self.path, providers=["CPUExecutionProvider"])
        self.ready = True
        return self.ready

    def get_input_types(self) -> list[dict]:
        """Name, datatype and shape of each input for the metadata; -1 is a dynamic dimension."""
        return [_describe(node) for node in self.session.get_inputs()]

    def get_output_types(self) -> list[dict]:
        """The same for the outputs."""
        return [_describe(node) for node in self.session.get_outputs()]

    async def predict(self, payload: InferRequest, headers: dict[str, str] | None = None) -> InferResponse:
        """Run the file once for all members, in a thread, so that the server goes on listening."""
        known = {node["name"]: node for node in self.get_input_types()}
        if sorted(known) != sorted(given.name for given in payload.inputs):
            names = [given.name for given in payload.inputs]
            raise InvalidInput(f"model '{self.name}': expected inputs {sorted(known)}, got {sorted(names)}")
        feed = {given.name: _checked(given, known[given.name]) for given in payload.inputs}
        values = await asyncio.to_thread(self.session.run, None, feed)
        outputs = []
        for node, value in zip(self.session.get_outputs(), values, strict=True):
            output = InferOutput(node.name, list(value.shape), from_np_dtype(value.dtype))
            output.set_data_from_numpy(value, binary_data=payload.use_binary_outputs)
            outputs.append(output)
        return InferResponse(
            payload.id or generate_uuid(),
            self.name,
            outputs,
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


def _describe(node: ort.NodeArg) -> dict:
    shape = [size if isinstance(size, int) else -1 for size in node.shape]
    return {"name": node.name, "datatype": DTYPES[node.type], "shape": shape}


def _checked(given: InferInput, node: dict) -> np.ndarray:
    """What does not fit is the client's error, status 400, and not the server's."""
    fits = len(given.shape) == len(node["shape"])
    fits = fits and all(want in (-1, got) for got, want in zip(given.shape, node["shape"], strict=True))
    if given.datatype != node["datatype"] or not fits:
        raise InvalidInput(
            f"input '{given.name}': expected {node['datatype']} {node['shape']}, got {given.datatype} {given.shape}"
        )
    return given.as_numpy()


def main(path: str, name: str, host: str, port: int, seconds: float | None) -> None:
    """Load the file, say where it is served, and serve until a signal comes or the time is over."""
    model = PackedEnsemble(name, path)
    model.load()
    server = ModelServer(enable_grpc=False)
    server.register_model(model)
    # ModelServer.start() would listen on all addresses of the machine; its parts also take a socket.
    rest = RESTServer("kserve.model_server:app", server.dataplane, server.model_repository_extension, port)
    with socket.create_server((host, port)) as listener:
        host, port = listener.getsockname()
        if seconds is not None:
            timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
            timer.daemon = True
            timer.start()
        print(f"{path} is served at {host}:{port} as {name}", flush=True)
        rest.run(sockets=[listener])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", default="ensemble.onnx", help="the ONNX file")
    parser.add_argument("--name", default="digits", help="the model's name in URLs")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 in a container")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--seconds", type=float, help="stop by itself after this long")
    arguments = parser.parse_args()
    main(arguments.path, arguments.name, arguments.host, arguments.port, arguments.seconds)
