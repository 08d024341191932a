"""The sample that logs a package to MLflow: what comes back must be what the manifest says."""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

FOLDER = Path(__file__).parent.parent / "samples" / "mlflow"


@pytest.fixture
def package(tmp_path):
    """A package of one file, with what the sample reads of a manifest."""
    folder = tmp_path / "net"
    folder.mkdir()
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8, 8])
    y = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 8, 8])
    graph = helper.make_graph([helper.make_node("Exp", ["x"], ["output"])], "g", [x], [y])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "model.onnx")
    tensor = {"dtype": "float32", "shape": ["batch", 8, 8]}
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    manifest = {
        "name": None, "n_members": 3, "plan": {"strategy": "auto"}, "validation": {"max_error": 2.5e-7},
        "inputs": [{"name": "x", **tensor}], "outputs": [{"name": "output", **tensor}],
        "files": [{"path": "model.onnx", "sha256": digest}],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def log(package: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, FOLDER / "log_package.py", package]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return subprocess.run(command, cwd=package.parent, env=environment, capture_output=True, text=True, timeout=300)


def test_the_store_holds_what_the_manifest_says(package):
    done = log(package)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "logged a model of 3 members, proven to 2.5e-07 of the largest value",
        "input   x                          float32 [-1, 8, 8]",
        "output  output                     float32 [-1, 8, 8]",
        "loaded back, 1797 images: largest difference to the file run directly 0.0",
        "has the manifest's digest: the model True, the 1 files of the folder True",
    ]
    store = package.parent / "store"
    with sqlite3.connect(store / "mlflow.db") as database:
        assert ("n_members", "3") in database.execute("select key, value from params").fetchall()
        assert database.execute("select key, value from metrics").fetchall() == [("proof_max_error", 2.5e-7)]
    database.close()
    (logged,) = store.glob("artifacts/*/artifacts/package/manifest.json")
    assert logged.read_bytes() == (package / "manifest.json").read_bytes()
    assert {path.name for path in package.parent.iterdir()} == {"net", "store"}


def test_a_file_that_is_not_the_manifests_is_found(package):
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["files"][0]["sha256"] = "0" * 64
    (package / "manifest.json").write_text(json.dumps(manifest))
    done = log(package)
    assert done.returncode == 1
    assert "has the manifest's digest: the model False, the 1 files of the folder False" in done.stdout
    assert done.stderr.endswith("what MLflow gave back is not what was logged\n")


def test_a_signature_that_does_not_fit_is_refused(package):
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["inputs"][0]["shape"] = ["batch", 64]
    (package / "manifest.json").write_text(json.dumps(manifest))
    done = log(package)
    assert done.returncode == 1
    assert "Shape of input (1797, 8, 8) does not match expected shape (-1, 64)" in done.stderr
