"""`bench --members-curve` end to end; what it measures is tested in tests/bench."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.bench.curves import saved
from tests.bench.test_curve_plot import ALL
from tests.cli.projects import X, run, snapshot
from tests.zoo.stubs import declare_if_needed

TORCHVISION = declare_if_needed()  # torchmetrics imports torchvision where that is installed
MODEL = ("--model", "model.py:Net")
QUICK = (*MODEL, "--blocks", 3)
POINT = {"k", "subsets", "latency_ms", "loop_ms", *ALL}
DATA = {"path", "rows", "output", "kind", "has_labels", "batch"}


@pytest.fixture
def packed(project):
    assert run("pack", "ckpts", *MODEL, "--input", X, "--emit", "probs,entropy", "-o", "e.onnx").exit_code == 0
    x = np.random.default_rng(0).standard_normal((30, 4), dtype=np.float32)
    saved(project / "d.npz", x=x, labels=np.arange(30) % 3, ids=np.arange(30))
    return project


def test_the_json_object_and_the_drawing(packed):
    """Keys are a contract, and docs/members-curve.md explains each."""
    options = ("--members-curve", "d.npz", "--plot", "c.svg", "--json")
    answer = run("bench", "e.onnx", "ckpts", *QUICK, *options).answer
    points = answer["members_curve"]
    assert [(point["k"], point["subsets"]) for point in points] == [(1, 3), (2, 3), (3, 1)]
    assert all(set(point) == POINT for point in points)
    assert points[-1]["agreement"] == {"mean": 1, "min": 1, "max": 1}
    assert points[0]["deviation"] is points[0]["rmse"] is None
    assert all(point["latency_ms"] > 0 < point["loop_ms"] for point in points)
    assert answer["curve_data"] == {
        "path": "d.npz", "rows": 30, "output": "output", "kind": "classes", "has_labels": True, "batch": 1,
    }  # fmt: skip
    assert [(row["n_members"], row["alternative"]) for row in answer["results"]] == [
        (k, kind) for k in (1, 2, 3) for kind in ("packed", "packed-again", "loop")
    ]
    assert answer["warnings"] == ["'d.npz': the array 'ids' is neither an input nor the labels"]
    assert (answer["plots"], (packed / "c.svg").read_text().count("<svg")) == (["c.svg"], 1)
    text = (Path(__file__).parents[2] / "docs" / "members-curve.md").read_text()
    for key in POINT | DATA | {"members_curve", "curve_data", "mean", "min", "max"}:
        assert f"`{key}`" in text


def test_the_table(packed):
    options = ("--members-curve", "d.npz", "--members", "1,3", "--batch", "2", "--alternatives", "strong-loop")
    result = run("bench", "e.onnx", "ckpts", *QUICK, *options)
    assert result.exit_code == 0
    assert result.err == "warning: 'd.npz': the array 'ids' is neither an input nor the labels\n"
    title, _, head, first, last, *rest = result.out.splitlines()
    assert title == "e.onnx on 30 rows of d.npz, with labels, output 'output', classes"
    assert " ".join(head.split()) == "members subsets agreement accuracy NLL ECE ms at batch 2 ms, loop"
    assert (first.split()[:2], last.split()[:3]) == (["1", "3"], ["3", "1", "100.00%"])
    assert last.split()[-1] == "-"  # no loop was asked for
    assert any(line.startswith("ECE: expected calibration error") for line in rest)


BAD = {
    "several batch sizes": (("--batch", "1,8"), 2, "at the batch sizes 1,8: expected one"),
    "an output": (("--curve-output", "logits"), 2, "no output 'logits' for --curve-output: expected one of output"),
    "members": (("--members", "4"), 2, "cannot measure 4 members"),
    "a speed-up": (("--min-speedup", "2:threads"), 2, "'threads', which --alternatives leaves out"),
}


@pytest.mark.parametrize(("options", "exit_code", "fact"), BAD.values(), ids=BAD)
def test_a_bad_option_is_refused(packed, options, exit_code, fact):
    result = run("bench", "e.onnx", "ckpts", *QUICK, "--members-curve", "d.npz", *options, "--json")
    assert (result.exit_code, fact in result.error["message"]) == (exit_code, True)


def test_an_output_without_a_curve_is_refused(project):
    result = run("bench", "nowhere.onnx", "ckpts", *QUICK, "--curve-output", "output", "--json")
    assert (result.exit_code, result.error["hint"]) == (2, "Add --members-curve DATA.npz.")


def test_bad_data_is_exit_3_and_leaves_nothing(packed):
    before = snapshot(packed)
    result = run("bench", "e.onnx", "ckpts", *QUICK, "--members-curve", "nowhere.npz", "--plot", "c.png", "--json")
    assert (result.exit_code, result.error["code"]) == (3, "E_DATA")
    assert "'nowhere.npz': there is no such file" in result.error["message"]
    assert snapshot(packed) == before


def test_without_torchmetrics_nothing_is_timed(packed, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    result = run("bench", "e.onnx", "ckpts", *QUICK, "--members-curve", "d.npz", "--json")
    assert (result.exit_code, result.error["hint"]) == (7, 'Run: pip install "ensexport[metrics]"')
