"""`bench` end to end; what it measures is tested in tests/bench."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from tests.cli.projects import X, run, snapshot

MODEL = ("--model", "model.py:Net")


@pytest.fixture
def packed(project):
    assert run("pack", "ckpts", *MODEL, "--input", X, "--per-member", "x", "-o", "e.onnx").exit_code == 0
    return project


QUICK = ("--batch", "2", "--blocks", 3, "--alternatives", "loop")
ROW = {
    "batch", "n_members", "alternative", "median_ms", "ratio", "ratio_low", "ratio_high", "calls", "memory_mb",
    "load_s", "nodes", "roofline_share",
}  # fmt: skip
WORK = {
    "batch", "n_members", "flops", "weight_bytes", "input_bytes", "output_bytes", "dtype", "floor_ms",
}  # fmt: skip
ENVIRONMENT = {
    "provider", "threads", "processor", "python", "torch", "onnxruntime", "mode", "mode_reason", "method", "peak_dtype",
    "peak_flops_per_s", "peak_bytes_per_s",
}  # fmt: skip


def test_the_keys_of_the_json_object(packed):
    """They are a contract, and docs/bench.md explains each."""
    answer = run("bench", "e.onnx", "ckpts", *MODEL, *QUICK, "--members", "1,3", "--json").answer
    keys = {"command", "ok", "artifact", "results", "work", "environment", "left_out", "plots", "warnings"}
    assert set(answer) == keys
    assert [(row["n_members"], row["alternative"]) for row in answer["results"]] == [
        (n_members, kind) for n_members in (1, 3) for kind in ("packed", "packed-again", "loop")
    ]
    assert all(set(row) == ROW for row in answer["results"])
    assert all(set(row["nodes"]) == {"total", "by_op"} for row in answer["results"])
    assert all(set(entry) == WORK for entry in answer["work"])
    assert set(answer["environment"]) == ENVIRONMENT
    text = (Path(__file__).parents[2] / "docs" / "bench.md").read_text()
    for key in keys | ROW | WORK | ENVIRONMENT | {"total", "by_op"}:
        assert f"`{key}`" in text


def test_the_table(packed):
    result = run("bench", "e.onnx", "ckpts", *MODEL, *QUICK, "--members", "2,3", "--min-speedup", "1e-6")
    assert (result.exit_code, result.err) == (0, "")
    for title in (
        "\nbatch 2, N = 2 ",
        "\nbatch 2, N = 3 ",
        "  the roof: ",
        "\nloop: N ONNX Runtime sessions",
        "\nmode: ",
    ):
        assert title in result.out


def test_a_speedup_that_is_not_reached_is_exit_5_and_one_object(packed):
    result = run("bench", "e.onnx", "ckpts", *MODEL, *QUICK, "--min-speedup", "1e6", "--json")
    error = result.error
    assert (result.exit_code, error["code"]) == (5, "E_SPEEDUP")
    assert "times as fast as 'loop' at batch 2" in error["message"]
    assert "at least 1e+06" in error["message"]
    assert [row["alternative"] for row in error["results"]] == ["packed", "packed-again", "loop"]
    assert set(error["results"][0]) == ROW
    assert error["left_out"] == {}
    assert set(error["environment"]) == ENVIRONMENT


@pytest.fixture
def drawing(monkeypatch):
    """How a report is drawn is tested in tests/bench; here, where the drawing goes."""

    def draw(answer, path):
        path.write_text(json.dumps([row["alternative"] for row in answer["results"]]))

    monkeypatch.setattr("ensexport.cli.bench.draw", draw)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name == "matplotlib" else find_spec(name))


def test_drawings_are_put_in_place_at_the_end(packed, drawing):
    (packed / "b.html").write_text("old")
    options = (*QUICK, "--plot", "a.png", "--plot", "b.html", "--force", "--json")
    answer = run("bench", "e.onnx", "ckpts", *MODEL, *options).answer
    assert answer["plots"] == ["a.png", "b.html"]
    for name in answer["plots"]:
        assert json.loads((packed / name).read_text()) == ["packed", "packed-again", "loop"]


def test_a_speedup_that_is_not_reached_leaves_no_drawing(packed, drawing):
    before = snapshot(packed)
    assert run("bench", "e.onnx", "ckpts", *MODEL, *QUICK, "--min-speedup", "1e6", "--plot", "a.png").exit_code == 5
    assert snapshot(packed) == before


@pytest.mark.parametrize(
    ("plot", "exit_code", "fact"),
    [("a.pdf", 2, "'a.pdf'"), ("nowhere/a.png", 7, "'nowhere' does not exist"), ("e.svg", 7, "it exists")],
)
def test_a_drawing_that_cannot_be_made_is_refused_at_once(project, drawing, plot, exit_code, fact):
    (project / "e.svg").write_text("old")
    result = run("bench", "nowhere.onnx", "ckpts", *MODEL, "--plot", plot, "--json")
    assert (result.exit_code, fact in result.error["message"]) == (exit_code, True)


def test_without_matplotlib_nothing_is_measured(project, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    result = run("bench", "nowhere.onnx", "ckpts", *MODEL, "--plot", "a.png", "--json")
    assert result.exit_code == 7
    assert "matplotlib is not installed" in result.error["message"]
    assert "ensexport[plot]" in result.error["hint"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("option", ["--provider", "--target"])
def test_a_provider_that_is_not_there_is_exit_7(packed, option):
    result = run("bench", "e.onnx", "ckpts", *MODEL, option, "cuda", "--json")
    assert (result.exit_code, result.error["code"]) == (7, "E_PROVIDER")


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
    "alternatives": (("--alternatives", "loop,lop"), "'lop'"),
    "alternatives-empty": (("--alternatives", ""), "''"),
    "cuda-graph": (("--alternatives", "packed-cuda-graph"), "'packed-cuda-graph' on the CPU"),
    "left-out": (("--alternatives", "threads", "--min-speedup", "2"), "'loop', which --alternatives leaves out"),
    "members": (("--members", "2,x"), "--members '2,x'"),
    "mode": (("--mode", "alone"), "'alone'"),
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
