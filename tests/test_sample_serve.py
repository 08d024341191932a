"""The sample that serves a file: what it says of itself, what it refuses, and that wrong answers do not pass."""

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, save

FOLDER = Path(__file__).parent.parent / "samples" / "serve"


def write_file(path: Path, factor: float) -> Path:
    """`output = factor * x`, `sums` = the sums of each image."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8, 8])
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 8, 8])]
    outputs.append(helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["batch"]))
    nodes = [helper.make_node("Mul", ["x", "factor"], ["output"])]
    nodes.append(helper.make_node("ReduceSum", ["output", "axes"], ["sums"], keepdims=0))
    constants = [helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])]
    constants.append(helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]))
    graph = helper.make_graph(nodes, "g", [x], outputs, constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@contextmanager
def served(path: Path, seconds: float = 120):
    """A server's process and its address."""
    command = [sys.executable, FOLDER / "server.py", path, "--name", "net", "--seconds", str(seconds)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        line = server.stdout.readline()
        assert line.startswith(f"{path} is served at 127.0.0.1:")
        yield server, line.split()[-3]
    finally:
        server.kill()
        server.communicate()


def client(path: Path, address: str) -> subprocess.CompletedProcess:
    command = [sys.executable, FOLDER / "client.py", path, "--name", "net", "--url", address]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def ask(address: str, tensor: dict) -> tuple[int, dict]:
    """Status and answer of a request in JSON, without Triton's client."""
    body = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{address}/v2/models/net/infer", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_server_of_another_file_is_found_out(tmp_path):
    mine, other = write_file(tmp_path / "mine.onnx", 1.0), write_file(tmp_path / "other.onnx", 1.0000001)
    with served(other) as (_, address):
        done = client(other, address)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"equal to {other} run here: True" in done.stdout
        done = client(mine, address)
        assert (done.returncode, done.stderr) == (1, "the server's answers are not the file's\n")
        assert f"equal to {mine} run here: False" in done.stdout


def test_the_protocol_in_plain_json(tmp_path):
    with served(write_file(tmp_path / "f.onnx", 2.0)) as (_, address):
        with urllib.request.urlopen(f"http://{address}/v2/models/net", timeout=60) as response:
            metadata = json.load(response)
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 8, 8]}]
        assert [(node["name"], node["shape"]) for node in metadata["outputs"]] == [
            ("output", [-1, 8, 8]), ("sums", [-1]),
        ]  # fmt: skip
        good = {"name": "x", "datatype": "FP32", "shape": [1, 8, 8], "data": list(range(64))}
        status, answer = ask(address, good)
        assert status == 200
        outputs = {output["name"]: output for output in answer["outputs"]}
        np.testing.assert_array_equal(outputs["output"]["data"], 2.0 * np.arange(64))
        assert (outputs["sums"]["shape"], outputs["sums"]["data"]) == ([1], [4032.0])
        for wrong, said in (
            ({"name": "y"}, "expected inputs ['x'], got ['y']"),
            ({"datatype": "FP64"}, "input 'x': expected FP32 [-1, 8, 8], got FP64 [1, 8, 8]"),
            ({"shape": [8, 8]}, "input 'x': expected FP32 [-1, 8, 8], got FP32 [8, 8]"),
            ({"shape": [1, 4, 16]}, "input 'x': expected FP32 [-1, 8, 8], got FP32 [1, 4, 16]"),
        ):
            status, answer = ask(address, good | wrong)
            assert status == 400
            assert said in answer["error"]


def test_it_listens_on_loopback_alone_and_stops_by_itself(tmp_path):
    with served(write_file(tmp_path / "f.onnx", 1.0), seconds=3) as (server, address):
        port = int(address.split(":")[1])
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
        with pytest.raises(ConnectionRefusedError):  # who listens on all addresses listens on this one too
            socket.create_connection(("127.0.0.2", port), timeout=10)
        assert server.wait(timeout=60) == -signal.SIGTERM


def test_a_server_that_does_not_start_is_an_error(tmp_path):
    command = [sys.executable, FOLDER / "client.py", tmp_path / "missing.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "server.py ended with exit code 1; run it by itself to see why" in done.stderr
