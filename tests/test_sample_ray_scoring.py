"""The sample that scores a table: a scored table that is not what the file says does not pass."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper, save

FOLDER = Path(__file__).parent.parent / "samples" / "ray_scoring"
ROWS = 30_000  # two files


def write_file(path: Path) -> None:
    """A softmax of a random layer, and the sum of the classes' squares in place of the mutual information."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8, 8])
    outputs = [helper.make_tensor_value_info("output.probs", TensorProto.FLOAT, ["batch", 10])]
    outputs.append(helper.make_tensor_value_info("output.mutual_information", TensorProto.FLOAT, ["batch"]))
    weight = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["x"], ["rows"]), helper.make_node("MatMul", ["rows", "w"], ["y"])]
    nodes += [helper.make_node("Softmax", ["y"], ["output.probs"])]
    nodes += [helper.make_node("ReduceSumSquare", ["output.probs", "axes"], ["output.mutual_information"], keepdims=0)]
    constants = [numpy_helper.from_array(weight, "w"), helper.make_tensor("axes", TensorProto.INT64, [1], [1])]
    graph = helper.make_graph(nodes, "g", [x], outputs, constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table, and a file to score it with."""
    folder = tmp_path_factory.mktemp("scoring")
    write_file(folder / "ensemble.onnx")
    command = [sys.executable, FOLDER / "table.py", "--rows", str(ROWS)]
    said = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    assert said.startswith("30,000 rows in 2 files, ")
    return folder


@pytest.fixture(scope="module")
def direct(folder) -> dict[str, np.ndarray]:
    """What the columns must be, without Ray and without the sample."""
    table = pq.read_table(folder / "table")
    x = np.stack(table["image"].to_numpy()).reshape(-1, 8, 8)
    session = ort.InferenceSession(folder / "ensemble.onnx", providers=["CPUExecutionProvider"])
    probs, squares = session.run(None, {"x": x})
    columns = {"row": table["row"].to_numpy(), "label": table["label"].to_numpy()}
    return columns | {
        "digit": probs.argmax(-1), "probability": probs.max(-1), "mutual_information": squares, "probs": probs,
    }  # fmt: skip


def compare(folder: Path, scored: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, FOLDER / "compare.py", "--out", str(scored)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def write_scored(folder: Path, columns: dict[str, np.ndarray]) -> Path:
    probs = pa.FixedSizeListArray.from_arrays(pa.array(columns["probs"].ravel()), 10)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    pq.write_table(pa.table(columns | {"probs": probs}), folder / "all.parquet")
    return folder


def test_ray_writes_each_row_once_with_the_files_own_values(folder, direct):
    command = [sys.executable, FOLDER / "score.py"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" by 2 processes, into scored\n")
    table = pq.read_table(folder / "scored").sort_by("row")
    assert table.column_names == list(direct)
    for name, expected in direct.items():
        found = table[name].combine_chunks()
        found = found.flatten().to_numpy().reshape(-1, 10) if name == "probs" else found.to_numpy()
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    said = compare(folder, folder / "scored").stdout
    assert said.splitlines()[-1].startswith("30,000 rows equal ensemble.onnx called directly: largest difference ")


def _one_value(columns: dict[str, np.ndarray]) -> None:
    columns["mutual_information"][20_000] += 1e-4


def _one_probability(columns: dict[str, np.ndarray]) -> None:
    columns["probs"][29_999, 3] += 1e-4


def _nan(columns: dict[str, np.ndarray]) -> None:
    columns["probs"][7, 3] = np.nan


def _a_row_is_missing(columns: dict[str, np.ndarray]) -> None:
    columns |= {name: np.delete(values, 123, axis=0) for name, values in columns.items()}


def _a_row_is_there_twice(columns: dict[str, np.ndarray]) -> None:
    columns |= {name: np.concatenate([values, values[:1]]) for name, values in columns.items()}


def _a_row_too_many(columns: dict[str, np.ndarray]) -> None:
    _a_row_is_there_twice(columns)
    columns["row"][-1] = ROWS


def _another_digit(columns: dict[str, np.ndarray]) -> None:
    columns["digit"][5] = (columns["digit"][5] + 1) % 10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_one_value, "30000 rows for 30000, largest difference 1.0e-04, allowed 1e-05"),
        (_one_probability, "30000 rows for 30000, largest difference 1.0e-04, allowed 1e-05"),
        (_nan, "largest difference nan"),
        (_a_row_is_missing, "has not just the rows 0 to 24999 of table/part_000.parquet"),
        (_a_row_is_there_twice, "has not just the rows 0 to 24999 of table/part_000.parquet"),
        (_a_row_too_many, "30001 rows for 30000"),
        (_another_digit, "1 other digits"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_what_is_not_the_files_is_found(change, said, folder, direct, tmp_path):
    columns = {name: values.copy() for name, values in direct.items()}
    assert compare(folder, write_scored(tmp_path / "right", columns)).returncode == 0
    change(columns)
    done = compare(folder, write_scored(tmp_path / "wrong", columns))
    assert done.returncode == 1
    assert said in done.stderr
