"""The calibration script: all forms of a layer compute the same, and the table holds what its readers rely on."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from ensexport.compare import compare_arrays

FOLDER = Path(__file__).parents[2] / "samples" / "benchmarks"
sys.path.insert(0, str(FOLDER))
forms = importlib.import_module("forms")
sys.path.remove(str(FOLDER))

CONV = {"size": 5, "batch": 2, "n_members": 3}
PROBLEMS = {
    "conv": (forms.Conv(6, 6, 3, False, layers=3, **CONV), "padded_8 padded_16 block_diagonal"),
    "conv of other channels out": (forms.Conv(4, 10, 3, False, layers=1, **CONV), "padded_8 padded_16 block_diagonal"),
    "1x1": (forms.Conv(16, 16, 1, False, layers=2, **CONV), "block_diagonal matmul"),
    "1x1, wide": (forms.Conv(56, 56, 1, False, layers=1, **CONV), "padded_16 matmul"),
    "depthwise": (forms.Conv(8, 8, 3, True, layers=2, **CONV), "padded_16"),
    "linear": (forms.Linear(4, 6, 5, 3), "batched"),
    "linear, shared": (forms.Linear(4, 6, 5, 3, True), "wide wide_members batched"),
    "layer norm": (forms.LayerNorm(4, 6, 3), "affine folded flattened"),
}


def outputs(form):
    session = ort.InferenceSession(form.model.SerializeToString(), providers=["CPUExecutionProvider"])
    return form.to_members(session.run(None, form.feed))


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float16", 1e-2)])
def test_all_forms_compute_the_same(name, dtype, bound):
    problem, others = PROBLEMS[name]
    made = {form.name: form for form in problem.forms(dtype)}
    between = {"conv": ["unrolled_between", "grouped"], "linear": ["unrolled_between"]}.get(problem.key()["op"], [])
    assert list(made) == ["unrolled", *between, *others.split()]
    expected = outputs(made.pop("unrolled"))
    assert len({member.tobytes() for member in expected}) == 3  # members differ
    for form in made.values():
        assert compare_arrays(expected, outputs(form)).max_rel < bound, form.name


def test_flops_are_counted_by_hand():
    assert forms.Conv(6, 4, 3, False, layers=1, **CONV).flops == 2 * 3 * 2 * 25 * 4 * 6 * 9
    assert forms.Conv(8, 8, 3, True, layers=2, **CONV).flops == 2 * 2 * 3 * 2 * 25 * 8 * 9
    assert forms.Linear(4, 6, 5, 3).flops == 2 * 3 * 4 * 6 * 5


@pytest.fixture(scope="module")
def calibrate():
    """The script as a module; its import needs its neighbour."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("calibrate")
    sys.path.remove(str(FOLDER))


def ran(calibrate, form):
    """A form as `calibrate.load` returns it, but with threads of its own: a shared pool would be all tests'."""
    session = ort.InferenceSession(form.model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in form.feed.items()}
    return calibrate.Contestant(form, session, session.io_binding(), session.run_with_ort_values(None, values))


def test_forms_that_differ_are_not_timed(calibrate):
    unrolled, affine, folded, _ = forms.LayerNorm(4, 6, 3).forms("float32")
    calibrate.check_same([ran(calibrate, form) for form in (unrolled, affine, folded)], 1e-5)
    wrong = forms.Form("wrong", folded.model, folded.feed, lambda values: values[0])
    with pytest.raises(SystemExit, match="'wrong' computes something else"):
        calibrate.check_same([ran(calibrate, unrolled), ran(calibrate, wrong)], 1e-2)


def test_a_form_that_cannot_run_is_a_row_with_its_error(calibrate):
    problem = forms.LayerNorm(4, 6, 3)
    tried = {"unrolled": "Fail: no such kernel", "affine": "Fail: no such kernel"}
    rows = calibrate._timed(problem, "cpu", "float32", tried, 3, calibrate.time.perf_counter, cuda_graph=True)
    assert [(row["form"], row["error"], row["cuda_graph"]) for row in rows] == [
        ("unrolled", "Fail: no such kernel", True),
        ("affine", "Fail: no such kernel", True),
    ]


def test_the_grid_keeps_to_its_bounds(calibrate):
    for provider in ("cpu", "cuda"):
        quick, full = (list(calibrate.grid(provider, quick=quick)) for quick in (True, False))
        assert len(quick) < len(full) / 4
        assert max(problem.flops for problem in full) <= calibrate.MAX_FLOPS[provider]
        assert {problem.key()["op"] for problem in quick} == {"conv", "linear", "linear_shared", "layer_norm"}


def test_the_table(tmp_path):
    path = tmp_path / "table.json"
    script = [sys.executable, str(FOLDER / "calibrate.py"), "--quick", "--rounds", "3", "-o", str(path)]
    done = subprocess.run([*script, "--op", "layer_norm", "--threads", "1"], check=True, capture_output=True, text=True)
    table = json.loads(path.read_text())
    assert f"{len(table['rows'])} rows" in done.stdout
    assert (table["left_out"], table["environment"]["clock"]) == (0, "thread_time")
    first, second = table["rows"][:2]
    key = {"op": "layer_norm", "rows": 1, "features": 64, "n_members": 5, "dtype": "float32", "cuda_graph": False}
    assert key.items() <= first.items()
    assert (first["form"], first["ratio_to_unrolled"], second["form"]) == ("unrolled", 1.0, "affine")
    assert 0 < second["low"] <= second["ratio_to_unrolled"] <= second["high"]
    assert np.all([row["fastest_us"] <= row["us"] for row in table["rows"]])


def test_layers_that_time_did_not_allow_are_counted(tmp_path):
    path = tmp_path / "table.json"
    script = [sys.executable, str(FOLDER / "calibrate.py"), "--quick", "--limit-s", "-1", "-o", str(path)]
    subprocess.run(script, check=True, capture_output=True)
    table = json.loads(path.read_text())
    assert table["rows"] == []
    assert table["left_out"] > 100
