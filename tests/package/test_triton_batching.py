import pytest

from ensexport.errors import TritonError, UsageError
from ensexport.package.triton_batching import DEFAULT_MAX_BATCH_SIZE, decide_batching
from ensexport.package.triton_tensors import read_tensors
from tests.package.triton_manifests import make_manifest, tensor

DIMS = {"batch": [1, None], "rows": [1, None], "few": [1, 10], "pairs": [2, None], "seq": [1, 512]}


def decide(inputs, outputs, asked=None):
    manifest = make_manifest(inputs, outputs)
    return decide_batching(*read_tensors(manifest, "onnx"), DIMS, manifest["n_members"], asked)


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ([tensor("x", "batch", 4)], [tensor("y", "batch", 3, 3)], DEFAULT_MAX_BATCH_SIZE),
        ([tensor("x", "batch")], [tensor("y", "batch")], DEFAULT_MAX_BATCH_SIZE),
        ([tensor("x", "batch", "seq"), tensor("m", "batch", "seq")], [tensor("y", "batch", "seq", 3)], 64),
        ([tensor("x", "few", 4)], [tensor("y", "few", 3)], 10),
        ([tensor("x", "batch", 4), tensor("member_weights", 3, is_optional=True)], [tensor("y", "batch", 3)], 64),
        ([tensor("x", "batch", "seq")], [tensor("y", "batch", "2*seq + 1")], 64),
    ],
    ids=["rows", "the batch alone", "two inputs", "a bound", "optional", "an expression behind"],
)
def test_what_begins_with_the_batch_is_batched(inputs, outputs, expected):
    batching = decide(inputs, outputs)
    assert (batching.max_batch_size, batching.reason, batching.is_batched) == (expected, "", True)


ROWS = [tensor("x", "batch", 4)]


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        (ROWS, [tensor("y", 3, "batch", 3)],
         "output 'y' of shape (3, batch, 3) begins with 3, which is no dynamic dimension: it holds the members first; "
         "--member-axis 1 puts the batch there, --emit mean has it there"),
        ([tensor("x", 3, "batch", 4)], [tensor("y", "batch", 3, 3)],
         "input 'x' of shape (3, batch, 4) begins with 3, which is no dynamic dimension: it holds the members first"),
        ([tensor("x", 8, 4)], [tensor("y", 8, 3)],
         "input 'x' of shape (8, 4) begins with 8, which is no dynamic dimension"),
        ([tensor("x", "batch", 4), tensor("s")], [tensor("y", "batch", 3)], "input 's' of shape () has no dimension"),
        (ROWS, [tensor("y", "rows", 3)],
         "output 'y' of shape (rows, 3) begins with 'rows', and input 'x' of shape (batch, 4)"),
        (ROWS, [tensor("y", "2*batch", 3)],
         "output 'y' of shape (2*batch, 3) begins with 2*batch, which is no dynamic"),
        (ROWS, [tensor("y", "batch", "batch")], "output 'y' of shape (batch, batch) has 'batch' twice"),
        (ROWS, [tensor("y", "batch", "batch//2 + 1")], "has 'batch' twice, so that its rows depend on one another"),
        ([tensor("x", "pairs", 4)], [tensor("y", "pairs", 3)],
         "the model takes 'pairs' from 2 on, and Triton makes batches of 1"),
    ],
    ids=["members first", "per member", "fixed", "0-d", "other names", "twice the rows", "a matrix", "half a matrix",
         "pairs"],
)  # fmt: skip
def test_what_does_not_is_not_and_says_why(inputs, outputs, reason):
    batching = decide(inputs, outputs)
    assert batching.max_batch_size == 0
    assert not batching.is_batched
    assert batching.reason.startswith(reason) or batching.reason.endswith(reason)
    with pytest.raises(TritonError) as caught:
        decide(inputs, outputs, asked=8)
    assert f"cannot serve batches of 8 with Triton: {batching.reason}." in str(caught.value)


def test_a_name_that_holds_the_batch_s_name_is_another_dim():
    assert decide(ROWS, [tensor("y", "batch", "batches")]).is_batched


def test_a_model_without_required_inputs_has_no_batch():
    manifest = make_manifest([tensor("member_weights", 3, is_optional=True)], [tensor("y", "batch", 3)])
    inputs, outputs = read_tensors(manifest, "onnx")
    assert decide_batching(inputs, outputs, DIMS, 3).reason == "no input has to be given"


def test_the_user_may_choose():
    rows = ROWS, [tensor("y", "batch", 3)]
    assert decide(*rows, asked=500).max_batch_size == 500
    assert decide(*rows, asked=0).reason == "max_batch_size 0 was asked for"
    few = [tensor("x", "few", 4)], [tensor("y", "few", 3)]
    assert decide(*few, asked=10).max_batch_size == 10
    with pytest.raises(TritonError, match="cannot serve batches of 11 with Triton: the model takes 'few' up to 10"):
        decide(*few, asked=11)


@pytest.mark.parametrize("asked", [-1, 2**31])
def test_numbers_that_are_no_int32_are_refused(asked):
    with pytest.raises(UsageError, match=f"max_batch_size is {asked}: expected 0"):
        decide(ROWS, [tensor("y", "batch", 3)], asked=asked)
