"""`bench` on artifacts that combine their members: timed as they ship, compared by the members behind them."""

import numpy as np
import pytest

from ensexport.bench.contents import Contents
from ensexport.emission import OutputEmission
from ensexport.errors import MismatchError
from ensexport.runtime import read_metadata
from ensexport.weighting import MemberWeights
from tests.bench.test_run import alternatives, measure, pack
from tests.cli.projects import X, change_state


def test_what_only_combined_outputs_show_is_compared_by_the_members_behind_them(project):
    pack("--input", X, "--emit", "probs,entropy", "-o", "e.onnx")
    kinds = ("loop", "strong-loop-1-thread", "unrolled", "vmap-onnx", "torch-vmap")
    report = measure("e.onnx", batches=(1, 3), alternatives=(*kinds, "torchscript", "packed-bound"))
    assert report.left_out == {}
    for batch in (1, 3):
        assert set(alternatives(report, batch)) == {"packed", "packed-again", *kinds, "torchscript", "packed-bound"}
    assert report.environment["method"].endswith(
        "the artifact returns output.probs, output.entropy; the alternatives return the members' outputs and combine "
        "nothing, which favours them"
    )


def test_the_first_members_are_packed_with_the_same_outputs(project):
    pack("--input", X, "--emit", "members,mean", "--member-axis", 1, "--member-weights", "0,1,3", "-o", "e.onnx")
    report = measure("e.onnx", batches=(2,), n_members=(1, 2, 3), alternatives=("loop", "unrolled"))
    assert report.left_out == {}
    assert [row.n_members for row in report.rows] == [1] * 4 + [2] * 4 + [3] * 4
    assert "returns output, output.mean;" in report.environment["method"]


@pytest.mark.parametrize("artifact", ["e.onnx", "e.ts", "e.pt2"])
def test_weights_that_are_an_input_are_given_where_they_must_be(project, artifact):
    pack("--input", X, "--emit", "probs", "--member-weights", "input", "-o", artifact)
    report = measure(artifact, batches=(2,), n_members=(2, 3), alternatives=("loop",))
    assert (report.left_out, len(report.rows)) == ({}, 6)


def test_a_member_behind_a_mean_that_is_not_the_packed_one_is_named(project):
    pack("--input", X, "--emit", "mean", "-o", "e.onnx")
    change_state(project / "ckpts" / "m1.pt", lambda state: state["last.bias"].add_(0.1))
    with pytest.raises(MismatchError, match=r"another 'output' than the artifact at member 1: .* Nothing was timed"):
        measure("e.onnx", batches=(2,), alternatives=("loop",))


@pytest.mark.parametrize(("artifact", "io"), [("e.onnx", "float16"), ("e.onnx", "float32"), ("e.ts", "bfloat16")])
def test_an_artifact_of_another_dtype_is_timed_as_it_ships(project, artifact, io):
    pack("--input", X, "--emit", "members,probs", "--dtype", io, "--io-dtype", io, "-o", artifact)
    report = measure(artifact, batches=(2,), n_members=(2, 3), alternatives=("loop", "torch-loop"))
    assert (report.left_out, len(report.rows)) == ({}, 8)
    assert f"the artifact has {io} inside, {io} in and out" in report.environment["method"]
    assert len(report.work) == (2 if artifact == "e.onnx" else 0)


def test_contents_are_read_off_the_metadata(project):
    pack("--input", X, "--emit", "members,vote", "--class-axis", 1, "--member-axis", 1, "-o", "e.onnx")
    contents = Contents.of(read_metadata(project / "e.onnx"))
    assert contents == Contents((OutputEmission("output", ("members", "vote"), 1),), None, 1)
    assert contents.emission.resolve(("output",)) == contents.emitted
    assert (contents.outputs, contents.hidden) == (("output",), ())
    found = contents.members_first({"output": np.zeros((2, 3, 4)), "output.vote": np.zeros((2, 4))})
    assert (found["output"].shape, found["output.vote"].shape) == ((3, 2, 4), (2, 4))
    assert contents.members_first({"output": np.zeros(3)})["output"].shape == (3,)


@pytest.mark.parametrize(
    ("values", "n_members", "expected"),
    [((0.0, 1.0, 3.0), 2, (0.0, 1.0)), ((0.0, 0.0, 3.0), 2, (1.0, 1.0)), (None, 2, None)],
    ids=["cut", "all 0", "input"],
)
def test_the_weights_of_the_first_members(values, n_members, expected):
    contents = Contents((OutputEmission("y", ("mean",)),), MemberWeights(values), 0)
    assert contents.first_weights(n_members) == MemberWeights(expected)
    assert Contents(contents.emitted, None, 0).first_weights(1) is None
