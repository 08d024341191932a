"""Stored tensors: every dtype both ways, and what is refused."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ensexport.errors import PackageError
from ensexport.package.samples import DTYPES, read_sample, read_tensor, tensor_bytes, write_sample


def values_of(kind, shape=(2, 3)):
    size = int(np.prod(shape))
    return (np.arange(size) % 2 == 0 if kind == "bool" else np.arange(size)).reshape(shape).astype(DTYPES[kind])


@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4)], ids=str)
@pytest.mark.parametrize("kind", DTYPES)
def test_every_dtype_survives(kind, shape):
    array = values_of(kind, shape)
    content = tensor_bytes("x", array)
    name, back = read_tensor(content, "x.pb")
    assert (name, back.dtype, back.shape) == ("x", array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    proto = onnx.TensorProto.FromString(content)  # as ONNX's own test runners read it
    theirs = numpy_helper.to_array(proto)
    assert (theirs.dtype, theirs.shape, theirs.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_nan_and_inf_survive():
    array = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
    assert read_tensor(tensor_bytes("x", array), "x.pb")[1].tobytes() == array.tobytes()


def test_the_bytes_depend_on_the_values_alone():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    same = [array, array.astype(">f4"), np.asfortranarray(array), array.T.copy().T, np.repeat(array, 2, axis=1)[:, ::2]]
    assert len({tensor_bytes("x", each) for each in same}) == 1


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros(2, np.complex64), "dtype complex64; ONNX Runtime takes and returns no complex numbers"),
        (np.array(["a"]), "expected one of float16"),
        (np.array([None]), "is of dtype object; expected one of"),
        (np.zeros(2, np.longdouble), "expected one of"),
        (np.zeros(2, ml_dtypes.float8_e4m3fn), "is of dtype float8_e4m3fn"),
    ],
    ids=["complex", "text", "object", "longdouble", "float8"],
)
def test_other_dtypes_are_refused(array, text, tmp_path):
    with pytest.raises(PackageError, match=f"cannot store 'y' as a sample.*{text}"):
        write_sample(tmp_path / "s", {"x": np.zeros(1)}, {"y": array})
    assert not (tmp_path / "s").exists()


def test_a_data_set_is_read_back(tmp_path):
    inputs, outputs = {"a": values_of("int64"), "b": values_of("bool")}, {"y": values_of("bfloat16")}
    files = write_sample(tmp_path / "s", inputs, outputs)
    assert [path.name for path in files] == ["input_0.pb", "input_1.pb", "output_0.pb"]
    back = read_sample(tmp_path / "s", "input", ["a", "b"])
    assert list(back) == ["a", "b"]
    assert all((back[name] == inputs[name]).all() for name in inputs)
    with pytest.raises(PackageError, match=r"input_0\.pb' holds 'a': expected 'b'"):
        read_sample(tmp_path / "s", "input", ["b", "a"])
    with pytest.raises(PackageError, match=r"output_1\.pb': No such file"):
        read_sample(tmp_path / "s", "output", ["y", "z"])


def proto(**fields):
    base = {"name": "x", "data_type": onnx.TensorProto.FLOAT, "dims": [2], "raw_data": bytes(8)}
    return onnx.TensorProto(**(base | fields)).SerializeToString()


WRONG = {
    "noise": (b"\xff" * 40, "it is no TensorProto"),
    "empty": (b"", "got type 0"),
    "text": (proto(data_type=onnx.TensorProto.STRING), "got type 8"),
    "complex": (proto(data_type=onnx.TensorProto.COMPLEX64), "got type 14"),
    "short": (proto(raw_data=bytes(7)), r"shape \[2\] of float32 takes 8 bytes, and it holds 7"),
    "long": (proto(raw_data=bytes(12)), "and it holds 12"),
    "negative": (proto(dims=[-2]), r"shape \[-2\]"),
    "two-negative": (proto(dims=[-1, -2]), r"shape \[-1, -2\]"),
    "huge": (proto(dims=[2**62, 2**62]), "and it holds 8"),
    "float-data": (onnx.helper.make_tensor("x", 1, [2], [0.0, 1.0]).SerializeToString(), "it holds no raw_data"),
    "external": (proto(data_location=onnx.TensorProto.EXTERNAL), "its values lie in another file"),
    "bool-2": (proto(data_type=onnx.TensorProto.BOOL, raw_data=b"\1\2"), "a bool is neither 0 nor 1"),
}


@pytest.mark.parametrize(("content", "text"), WRONG.values(), ids=WRONG)
def test_what_is_no_such_tensor_is_refused(content, text):
    with pytest.raises(PackageError, match=rf"cannot read 'a/x\.pb' as a sample: .*{text}"):
        read_tensor(content, "a/x.pb")
