import numpy as np
import pytest

from ensexport.errors import TritonError
from ensexport.package.triton_batching import Batching
from ensexport.package.triton_tensors import read_tensors
from ensexport.package.triton_warmup import warmup_fields
from tests.package.triton_manifests import make_manifest, tensor

BATCHED = Batching(16)
ALONE = Batching(0, "why")


def fields(message):
    return {name: value for name, value in message.fields if name != "inputs"}


def warm_up(entries, samples, batching=BATCHED, kind="onnx"):
    inputs, _ = read_tensors(make_manifest(entries), kind)
    return warmup_fields(inputs, samples, batching, kind)


def test_one_row_is_stored_and_run_alone_and_as_the_largest_batch():
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    messages, files = warm_up([tensor("x", "batch", 4)], {"x": x})
    assert [fields(message) for message in messages] == [
        {"name": "batch_1", "batch_size": 1}, {"name": "batch_16", "batch_size": 16},
    ]  # fmt: skip
    assert files == {"warmup/input_0.bin": np.arange(4, dtype="<f4").tobytes()}


def test_where_triton_does_not_batch_the_sample_is_stored_whole():
    x = np.arange(8, dtype=np.int64).reshape(2, 4)
    messages, files = warm_up([tensor("x", "batch", 4, dtype="int64")], {"x": x}, ALONE)
    assert [fields(message) for message in messages] == [{"name": "sample", "batch_size": 1}]
    assert files == {"warmup/input_0.bin": np.arange(8, dtype="<i8").tobytes()}


def test_a_bool_is_one_byte_and_order_and_byte_order_do_not_matter():
    keep = np.array([[True, False, True]])
    ids = np.asfortranarray(np.arange(6).reshape(2, 3)).astype(">i8")
    assert ids.dtype.byteorder == ">"
    entries = [tensor("keep", "batch", "seq", dtype="bool"), tensor("ids", 2, 3, dtype="int64")]
    _, files = warm_up(entries[:1], {"keep": keep})
    assert files == {"warmup/input_0.bin": b"\x01\x00\x01"}
    _, files = warm_up(entries[1:], {"ids": ids}, ALONE)
    assert files == {"warmup/input_0.bin": np.arange(6, dtype="<i8").tobytes()}


def test_optional_inputs_are_left_out():
    entries = [tensor("w", 3, is_optional=True), tensor("x", "batch", 4)]
    messages, files = warm_up(entries, {"x": np.zeros((1, 4), np.float32)})
    assert list(files) == ["warmup/input_1.bin"]
    assert [sum(name == "inputs" for name, _ in message.fields) for message in messages] == [1, 1]


def test_torchscript_is_run_twice():
    messages, _ = warm_up([tensor("x", "batch", 4)], {"x": np.zeros((1, 4), np.float32)}, kind="torchscript")
    assert [fields(message)["count"] for message in messages] == [2, 2]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (None, "no sample of it is stored"),
        (np.zeros((2, 4), np.float64), "got [2, 4] of float64"),
        (np.zeros((2, 5), np.float32), "got [2, 5] of float32"),
        (np.zeros(4, np.float32), "got [4] of float32"),
        (np.zeros((0, 4), np.float32), "got [0, 4] of float32"),
    ],
    ids=["missing", "dtype", "size", "rank", "empty"],
)
def test_samples_that_are_none_are_refused(sample, message):
    with pytest.raises(TritonError) as caught:
        warm_up([tensor("x", "batch", 4)], {} if sample is None else {"x": sample})
    assert str(caught.value).startswith("cannot warm up with input 'x' of shape (batch, 4): ")
    assert message in str(caught.value)
