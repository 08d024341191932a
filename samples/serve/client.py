"""Ask the server over HTTP with Triton's own client, and compare each answer with the file run here."""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
import tritonclient.http as triton
from sklearn.datasets import load_digits
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

BATCHES = (1, 7, 64, 540)


@contextmanager
def own_server(path: str) -> Iterator[str]:
    """Start server.py on a free port of 127.0.0.1, stop it behind the block."""
    command = [sys.executable, str(Path(__file__).with_name("server.py")), path, "--seconds", "120"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            raise SystemExit(f"server.py ended with exit code {server.wait()}; run it by itself to see why")
        print(line, end="")
        yield line.split(" is served at ")[1].split()[0]
    finally:
        server.terminate()
        server.wait()


def ask(client: triton.InferenceServerClient, name: str, x: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
    """One request in the protocol's binary form."""
    request = triton.InferInput("x", x.shape, np_to_triton_dtype(x.dtype))
    request.set_data_from_numpy(x)
    answer = client.infer(name, [request], outputs=[triton.InferRequestedOutput(output) for output in outputs])
    return [answer.as_numpy(output) for output in outputs]


def main(path: str, name: str, url: str) -> None:
    """Print the metadata, how far the answers are from the file's own, and a refusal."""
    images = (load_digits().images / 16).astype(np.float32)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    with triton.InferenceServerClient(url, connection_timeout=60, network_timeout=60) as client:
        print(f"ready: {client.is_model_ready(name)}")
        metadata = client.get_model_metadata(name)
        for kind in ("inputs", "outputs"):
            for node in metadata[kind]:
                print(f"{kind[:-1]:<7} {node['name']:<26} {node['datatype']} {node['shape']}")
        names = [node["name"] for node in metadata["outputs"]]
        equal = True
        for batch in BATCHES:
            served = ask(client, name, images[:batch], names)
            direct = session.run(names, {"x": images[:batch]})
            off = [float(np.abs(a - b).max()) for a, b in zip(served, direct, strict=True)]
            equal = equal and all(np.array_equal(a, b) for a, b in zip(served, direct, strict=True))
            print(f"batch {batch:>3}: {', '.join(str(list(a.shape)) for a in served)}, largest difference {max(off)}")
        print(f"equal to {path} run here: {equal}")
        try:
            ask(client, name, images[:1, :4], names)
        except InferenceServerException as error:
            print(f"refused: {error.message()}")
        else:
            equal = False
    if not equal:
        raise SystemExit("the server's answers are not the file's")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", default="ensemble.onnx", help="the ONNX file")
    parser.add_argument("--name", default="digits", help="the model's name on the server")
    parser.add_argument("--url", help="HOST:PORT of a server that runs; by default one is started, and stopped again")
    arguments = parser.parse_args()
    if arguments.url:
        main(arguments.path, arguments.name, arguments.url)
    else:
        with own_server(arguments.path) as address:
            main(arguments.path, arguments.name, address)
