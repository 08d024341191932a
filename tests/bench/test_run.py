"""`bench` as a library: every alternative computes the same, and what cannot run is named."""

import json

import numpy as np
import onnx
import pytest

from ensexport.bench.alternatives import MAKERS, member_feeds
from ensexport.bench.measure import BenchError, Timing
from ensexport.bench.names import DEFAULT_ALTERNATIVES, DESCRIPTIONS
from ensexport.bench.run import BenchReport, bench, write_member_files
from ensexport.errors import MismatchError, SpeedupError, UsageError
from ensexport.members import load_members
from ensexport.spec import parse_inputs
from tests.cli.projects import X, change_state, make_project, run


def pack(*arguments):
    result = run("pack", "ckpts", "--model", "model.py:Net", *arguments)
    assert result.exit_code == 0, result.err


def measure(artifact, **options):
    return bench(artifact, ["ckpts"], model="model.py:Net", blocks=3, **options)


def test_every_alternative_has_a_maker_and_a_description():
    assert set(MAKERS) == set(DESCRIPTIONS) == {"packed", "packed again", *DEFAULT_ALTERNATIVES, "torchscript", "onnx"}


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
    plain, bound = MAKERS["loop"](job), MAKERS["strong loop, 1 thread"](job)
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


def test_a_member_axis_of_1_is_compared_right_at_several_batches(project):
    """That all alternatives agree, with shared and per-member inputs, is seen in tests/cli."""
    pack("--input", X, "--per-member", "x", "--member-axis", 1, "-o", "e.onnx")
    report = measure("e.onnx", batches=(1, 3), alternatives=("strong loop",))
    assert report.left_out == {}
    assert list(report.timings) == [1, 3]
    for rows in report.timings.values():
        assert [row.alternative for row in rows] == ["packed", "packed again", "strong loop", "torchscript"]
        assert all(row.median_ms > 0 and row.ratio_low <= row.ratio <= row.ratio_high for row in rows)


def test_an_alternative_that_cannot_run_is_named_and_left_out(tmp_path, monkeypatch):
    """ONNX Runtime's Python sessions take no bfloat16 arrays."""
    monkeypatch.chdir(make_project(tmp_path / "project", dtype="bfloat16"))
    pack("--input", "x:bfloat16[batch,4]", "-o", "e.ts")
    report = measure("e.ts", batches=(2,), alternatives=("loop",))
    assert "can't be converted to MLDataType" in report.left_out["loop"]
    assert [row.alternative for row in report.timings[2]][:2] == ["packed", "packed again"]
    with pytest.raises(SpeedupError, match=r"'loop' was not measured, .*MLDataType"):
        report.check_speedup(1, "loop")


def test_a_speedup_is_asked_for_at_every_batch():
    rows = {
        batch: (Timing("packed", 1, 1, 1, 1), Timing("loop", 2, ratio, 1.5, 3)) for batch, ratio in ((1, 4), (8, 2))
    }
    report = BenchReport(rows, {}, {})
    report.check_speedup(2, "loop")
    with pytest.raises(SpeedupError, match=r"is 2\.00 times as fast as 'loop' at batch 8 .* at least 3\."):
        report.check_speedup(3, "loop")
    with pytest.raises(SpeedupError, match=r"at batch 1 .*, 2\.00 times as fast as 'loop' at batch 8"):
        report.check_speedup(5, "loop")


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
    assert list(report.timings) == [None]
    assert {row["batch"] for row in report.to_dict()["results"]} == {None}


def test_checkpoints_that_are_not_the_packed_ones_are_not_timed(project):
    pack("--input", X, "-o", "e.onnx")
    change_state(project / "ckpts" / "m1.pt", lambda state: state["last.bias"].add_(0.1))
    with pytest.raises(MismatchError, match=r"another 'output' than the artifact at member 1: .* Nothing was timed"):
        measure("e.onnx", batches=(2,), alternatives=("loop",))


def test_an_unknown_alternative_is_refused(project):
    with pytest.raises(UsageError, match="unknown alternative 'lop'"):
        measure("e.onnx", alternatives=("lop",))
