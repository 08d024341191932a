"""`bench` as a library: every alternative computes the same, and what cannot run is named."""

import json

import numpy as np
import onnx
import pytest
import torch

from ensexport.bench import session_loops
from ensexport.bench.alternatives import member_feeds
from ensexport.bench.files import write_member_files
from ensexport.bench.report import BenchReport, Row
from ensexport.bench.run import _mode, bench
from ensexport.errors import MismatchError, ProviderError, SpeedupError, UsageError
from ensexport.members import load_members
from ensexport.spec import parse_inputs
from ensexport.timing.measure import BenchError, Timing
from tests.cli.projects import X, change_state, make_project, run


def pack(*arguments):
    result = run("pack", "ckpts", "--model", "model.py:Net", *arguments)
    assert result.exit_code == 0, result.err


def measure(artifact, **options):
    return bench(artifact, ["ckpts"], model="model.py:Net", blocks=3, **options)


def test_a_per_member_input_is_cut_and_a_shared_one_is_not():
    job = {"per_member": ["x"], "n_members": 2}
    x, scale = np.arange(6).reshape(2, 3), np.ones(4)
    first, second = member_feeds(job, {"x": x, "scale": scale})
    assert (first["x"].tolist(), second["x"].tolist()) == ([0, 1, 2], [3, 4, 5])
    assert first["scale"] is second["scale"] is scale


TWO_INPUTS = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, bias):
        return self.layer(x) + bias, bias.sum()
"""


def test_bound_buffers_follow_new_inputs_of_the_same_shape(tmp_path):
    """Shared inputs are copied into a buffer, per-member ones bound anew; outputs are rows of one buffer."""
    folder = make_project(tmp_path / "project", TWO_INPUTS)
    members = load_members(folder / "ckpts", f"{folder}/model.py:Net")
    outputs = ["y", "total"]
    write_member_files(members, parse_inputs(["x:float32[batch,4]", "bias:float32[batch,3]"]), outputs, tmp_path)
    job = {
        "outputs": outputs, "per_member": ["bias"], "n_members": 3, "provider": "cpu",
        "member_paths": [str(tmp_path / f"member_{k}.onnx") for k in range(3)],
    }  # fmt: skip
    plain, bound = session_loops.loop(job), session_loops.strong_loop_1_thread(job)
    random = np.random.default_rng(0)
    for batch in (2, 2, 5, 2):
        feed = {
            "x": random.standard_normal((batch, 4), dtype=np.float32),
            "bias": random.standard_normal((3, batch, 3), dtype=np.float32),
        }
        expected, actual = plain(feed), bound(feed)
        assert list(actual) == outputs
        for name in outputs:
            assert np.allclose(actual[name], expected[name], atol=1e-6)
        assert expected["y"].shape == (3, batch, 3)
        assert expected["total"].shape == (3,)


def alternatives(report, batch=None):
    return [row.timing.alternative for row in report.rows if batch in (None, row.batch)]


def test_a_member_axis_of_1_is_compared_right_at_several_batches(project):
    """That all alternatives agree, with shared and per-member inputs, is seen in tests/cli."""
    pack("--input", X, "--per-member", "x", "--member-axis", 1, "-o", "e.onnx")
    report = measure("e.onnx", batches=(1, 3), alternatives=("strong-loop", "torchscript", "packed-bound"))
    assert report.left_out == {}
    assert {row.batch for row in report.rows} == {1, 3}
    for batch in (1, 3):
        assert alternatives(report, batch) == ["packed", "packed-again", "strong-loop", "torchscript", "packed-bound"]
    for row in report.rows:
        assert row.timing.median_ms > 0
        assert row.timing.ratio_low <= row.timing.ratio <= row.timing.ratio_high


def test_a_row_has_kernels_and_a_share_of_the_roof(project):
    pack("--input", X, "-o", "e.onnx")
    report = measure("e.onnx", batches=(4,), alternatives=("loop", "torch-loop", "vmap-onnx"))
    rows = {row.timing.alternative: row for row in report.rows}
    assert rows["loop"].nodes == {op: 3 * count for op, count in {"FusedGemm": 1, "Gemm": 1}.items()}
    assert rows["packed"].nodes == rows["packed-again"].nodes
    assert rows["packed"].to_dict()["nodes"]["total"] == sum(rows["packed"].nodes.values()) > 0
    assert rows["torch-loop"].nodes is rows["torch-loop"].to_dict()["nodes"] is None
    assert sum(rows["vmap-onnx"].nodes.values()) > 0
    (work,) = report.work
    assert (work["batch"], work["n_members"], work["dtype"]) == (4, 3, "float32")
    assert work["flops"] == 2 * 3 * 4 * (4 * 8 + 8 * 3)
    assert work["input_bytes"] == 4 * 4 * 4
    for row in report.rows:
        assert row.roofline_share == pytest.approx(work["floor_ms"] / row.timing.median_ms)
    assert report.environment["peak_dtype"] == "float32"


def test_the_first_members_are_packed_for_the_measurement(project):
    pack("--input", X, "--member-axis", 1, "-o", "e.onnx")
    report = measure("e.onnx", batches=(2,), n_members=(1, 3, 2), alternatives=("loop", "unrolled"))
    assert report.left_out == {}
    counts = [row.n_members for row in report.rows]
    assert counts == [1] * 4 + [3] * 4 + [2] * 4
    loops = {row.n_members: row.nodes for row in report.rows if row.timing.alternative == "loop"}
    assert loops[3] == {op: 3 * count for op, count in loops[1].items()}
    with pytest.raises(SpeedupError, match=r"at batch 2, 1 member .* at batch 2, 2 members"):
        report.check_speedup(1e6, "loop")
    with pytest.raises(UsageError, match="cannot measure 4 members"):
        measure("e.onnx", n_members=(4,))


def test_only_two_processes_at_a_time(project):
    pack("--input", X, "-o", "e.onnx")
    report = measure("e.onnx", batches=(1, 2), alternatives=("loop", "threads"), mode="isolated")
    for batch in (1, 2):
        assert alternatives(report, batch) == ["packed", "packed-again", "loop", "threads"]
    assert (report.environment["mode"], report.environment["mode_reason"]) == ("isolated", "asked for")
    assert "the artifact and one alternative at a time" in report.environment["method"]
    with pytest.raises(UsageError, match="unknown mode 'alone'"):
        measure("e.onnx", mode="alone")


def test_processes_that_would_not_fit_into_memory_are_isolated(monkeypatch):
    monkeypatch.setattr("ensexport.bench.run.available_mb", lambda: 1000.0)
    assert _mode(None, 40_000_000, 9) == ("interleaved", "all processes fit into memory together")
    assert _mode(None, 50_000_000, 9) == ("isolated", "9 processes would take about 585 MB of 1000 MB")
    assert _mode("interleaved", 50_000_000, 9) == ("interleaved", "asked for")
    monkeypatch.setattr("ensexport.bench.run.available_mb", lambda: None)
    assert _mode(None, 10**12, 9)[0] == "interleaved"


def test_bfloat16_members_are_looped_over_too(tmp_path, monkeypatch):
    """ONNX Runtime's Python sessions take no bfloat16 arrays; bindings and OrtValues do."""
    monkeypatch.chdir(make_project(tmp_path / "project", dtype="bfloat16"))
    pack("--input", "x:bfloat16[batch,4]", "-o", "e.onnx")
    report = measure("e.onnx", batches=(2,), alternatives=("loop", "threads", "strong-loop-1-thread", "packed-bound"))
    assert alternatives(report) == ["packed", "packed-again", "loop", "threads", "strong-loop-1-thread"]
    assert "bfloat16 inputs or outputs are not bound" in report.left_out["packed-bound"]


RECURRENT = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0]
"""


def test_an_alternative_that_cannot_run_is_named_and_left_out(tmp_path, monkeypatch):
    """torch.vmap has no rule for an LSTM."""
    monkeypatch.chdir(make_project(tmp_path / "project", RECURRENT))
    pack("--input", "x:float32[batch,5,4]", "-o", "e.ts")
    report = measure("e.ts", batches=(2,), alternatives=("vmap-onnx", "onnx"))
    assert alternatives(report) == ["packed", "packed-again", "onnx"]
    assert (
        "torch.onnx.export of the vmapped module fails: Batching rule not implemented" in report.left_out["vmap-onnx"]
    )
    assert [row.nodes is None for row in report.rows] == [True, True, False]
    assert report.rows[0].roofline_share > 0  # of the graph in ONNX beside it
    with pytest.raises(SpeedupError, match=r"'vmap-onnx' was not measured, .*Batching rule"):
        report.check_speedup(1, "vmap-onnx")
    with pytest.raises(SpeedupError, match=r"'loop' was not measured, .* it was not asked for"):
        report.check_speedup(1, "loop")


def test_without_a_compiler_torch_compile_is_left_out(project, monkeypatch):
    pack("--input", X, "-o", "e.onnx")
    monkeypatch.setattr("shutil.which", lambda name: None)
    report = measure("e.onnx", batches=(2,), alternatives=("torch-compile",))
    assert report.left_out == {"torch-compile": "there is no C++ compiler (g++ or clang++), which it needs."}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("artifact", ["e.onnx", "e.ts"])
def test_a_provider_that_is_not_there_is_refused_before_any_work(project, artifact):
    pack("--input", X, "-o", artifact)
    stages = []
    with pytest.raises(ProviderError):
        measure(artifact, provider="cuda", on_stage=lambda *stage: stages.append(stage))
    assert stages == []


def test_a_speedup_is_asked_for_at_every_batch_and_number_of_members():
    rows = [
        Row(batch, n_members, Timing(name, 2, ratio, 1.5, 3))
        for batch, n_members, loop in ((1, 3, 4), (8, 3, 2), (8, 1, 2.5))
        for name, ratio in (("packed", 1), ("loop", loop))
    ]
    report = BenchReport(tuple(rows), {}, {})
    report.check_speedup(2, "loop")
    with pytest.raises(
        SpeedupError, match=r"2\.00 times as fast as 'loop' at batch 8, 3 members .*at batch 8, 1 member "
    ):
        report.check_speedup(3, "loop")
    with pytest.raises(SpeedupError, match=r"at batch 1, 3 members .*, 2\.00 times as fast as 'loop' at batch 8"):
        report.check_speedup(5, "loop")
    report = BenchReport((Row(None, 1, Timing("loop", 2, 0.5, 0.4, 0.6)),), {}, {})
    with pytest.raises(
        SpeedupError, match=r"0\.50 times as fast as 'loop' at 1 member \(95 % interval 0\.40 to 0\.60\)"
    ):
        report.check_speedup(1, "loop")


def test_an_artifact_that_cannot_run_is_an_error(project):
    """Its metadata promise a dynamic batch that the graph does not keep."""
    pack("--input", "x:float32[3,4]", "-o", "e.onnx")
    model = onnx.load("e.onnx")
    (entry,) = (entry for entry in model.metadata_props if entry.key == "ensexport")
    entry.value = json.dumps({**json.loads(entry.value), "inputs": [X], "dims": {"batch": [1, None]}})
    onnx.save(model, "e.onnx")
    with pytest.raises(BenchError, match=r"'packed' fails when it is run: .*INVALID_ARGUMENT"):
        measure("e.onnx", batches=(2,), alternatives=())


def test_a_fixed_shape_is_measured_once_without_a_batch(project):
    pack("--input", "x:float32[3,4]", "-o", "e.onnx")
    report = measure("e.onnx", batches=(1, 8), alternatives=())
    assert {row["batch"] for row in report.to_dict()["results"]} == {None}


def test_checkpoints_that_are_not_the_packed_ones_are_not_timed(project):
    pack("--input", X, "-o", "e.onnx")
    change_state(project / "ckpts" / "m1.pt", lambda state: state["last.bias"].add_(0.1))
    with pytest.raises(MismatchError, match=r"another 'output' than the artifact at member 1: .* Nothing was timed"):
        measure("e.onnx", batches=(2,), alternatives=("loop",))


def test_an_unknown_alternative_is_refused(project):
    with pytest.raises(UsageError, match="unknown alternative 'lop'"):
        measure("e.onnx", alternatives=("lop",))
