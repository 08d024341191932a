"""`bench` end to end; what it measures is tested in tests/bench."""

from functools import partial

import pytest

from ensexport.bench.run import bench
from tests.cli.projects import X, run

MODEL = ("--model", "model.py:Net")


@pytest.fixture
def packed(project):
    assert run("pack", "ckpts", *MODEL, "--input", X, "--per-member", "x", "-o", "e.onnx").exit_code == 0
    return project


def test_a_speedup_that_is_not_reached_is_exit_5_and_one_object(packed, monkeypatch):
    monkeypatch.setattr("ensexport.bench.run.bench", partial(bench, alternatives=("loop",)))  # for time's sake
    options = ("--batch", "2", "--blocks", 3, "--min-speedup", "1e6", "--json")
    result = run("bench", "e.onnx", "ckpts", *MODEL, *options)
    error = result.error
    assert (result.exit_code, error["code"]) == (5, "E_SPEEDUP")
    assert "times as fast as 'loop' at batch 2" in error["message"]
    assert "at least 1e+06" in error["message"]
    assert [row["alternative"] for row in error["results"]] == ["packed", "packed again", "loop", "torchscript"]
    assert set(error["results"][0]) == {"batch", "alternative", "median_ms", "ratio", "ratio_low", "ratio_high"}
    assert error["left_out"] == {}
    assert {"processor", "threads", "provider", "torch", "onnxruntime", "method"} <= set(error["environment"])


def test_another_number_of_members_is_said(packed):
    result = run("bench", "e.onnx", "ckpts/m0.pt", *MODEL, "--json")
    assert result.exit_code == 3
    assert "holds 3 members, and 1 checkpoints" in result.error["message"]


BAD = {
    "batch-0": (("--batch", "0"), "'0'"),
    "batch-text": (("--batch", "1,"), "'1,'"),
    "batch-unicode": (("--batch", "²"), "'²'"),
    "blocks": (("--blocks", "2"), "x>=3"),
    "speedup-text": (("--min-speedup", "fast"), "'fast'"),
    "speedup-nan": (("--min-speedup", "nan"), "'nan'"),
    "speedup-0": (("--min-speedup", "0"), "'0'"),
    "alternative": (("--min-speedup", "2:lop"), "'lop'"),
    "own-format": (("--min-speedup", "2:onnx"), "'onnx'"),
}


@pytest.mark.parametrize(("options", "fact"), BAD.values(), ids=BAD)
def test_a_bad_option_is_refused_at_once(project, options, fact):
    result = run("bench", "e.onnx", "ckpts", *MODEL, *options, "--json")
    assert result.exit_code == 2
    assert fact in result.error["message"]


def test_a_missing_artifact(project):
    result = run("bench", "nowhere.onnx", "ckpts", *MODEL)
    assert result.exit_code == 3
    assert "nowhere.onnx" in result.err
