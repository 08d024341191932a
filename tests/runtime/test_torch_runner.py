import ml_dtypes
import numpy as np
import pytest
import torch

from ensexport.errors import ArtifactError, ProviderError
from ensexport.runtime import open_runners
from ensexport.runtime.torch_runner import array_from_tensor, tensor_from_array

from .files import MAKERS, Both, damage

SUFFIXES = (".ts", ".pt2")
X = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_loaded_and_run(tmp_path, suffix):
    (runner,) = list(open_runners(MAKERS[suffix](tmp_path / f"a{suffix}"), output_names=("y",)))
    assert (runner.provider, runner.optimization) == ("torch-cpu", "")
    for rows in (3, 1, 2):
        np.testing.assert_array_equal(runner.run({"x": X[:rows]})["y"], np.stack([X[:rows], X[:rows] * 2]))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_outputs_are_named_in_order(tmp_path, suffix):
    path = MAKERS[suffix](tmp_path / f"a{suffix}", Both())
    (runner,) = list(open_runners(path, output_names=("more", "double")))
    outputs = runner.run({"x": X})
    assert list(outputs) == ["more", "double"]
    np.testing.assert_array_equal(outputs["more"], X + 1)
    np.testing.assert_array_equal(outputs["double"], X * 2)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("names", [("a",), ("a", "b", "c")], ids=["fewer", "more"])
def test_another_number_of_outputs(tmp_path, suffix, names):
    (runner,) = list(open_runners(MAKERS[suffix](tmp_path / f"a{suffix}", Both()), output_names=names))
    with pytest.raises(ArtifactError, match=rf"returns 2 outputs: expected {len(names)} \(a"):
        runner.run({"x": X})


@pytest.mark.parametrize("how", ["empty", "half", "random", "html", "other zip"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file(tmp_path, suffix, how):
    path = damage(MAKERS[suffix](tmp_path / f"a{suffix}"), how)
    loader = {".ts": "torch.jit.load", ".pt2": "torch.export.load"}[suffix]
    with pytest.raises(ArtifactError, match=rf"{loader} cannot read 'a\{suffix}': ") as caught:
        list(open_runners(path, output_names=("y",)))
    assert str(tmp_path) not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_there_is_no_cuda_device(tmp_path, suffix, provider):
    path = MAKERS[suffix](tmp_path / f"a{suffix}")
    with pytest.raises(ProviderError, match=rf"cannot run 'a\{suffix}' on {provider}: torch sees no CUDA") as caught:
        list(open_runners(path, provider=provider, output_names=("y",)))
    assert caught.value.exit_code == 7


DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool", "complex64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3)], ids=str)
def test_tensors_and_arrays_are_turned_into_each_other(dtype, shape):
    tensor = torch.arange(6).reshape(2, 3)[: shape[0] if shape else None].to(getattr(torch, dtype))
    tensor = tensor.reshape(-1)[: int(np.prod(shape))].reshape(shape)
    array = array_from_tensor(tensor)
    assert array.shape == shape
    assert str(array.dtype) == dtype
    back = tensor_from_array(array)
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert back.equal(tensor)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
def test_arrays_that_torch_cannot_share(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    read_only = array.copy()
    read_only.flags.writeable = False
    for other in (array.T, array[:, ::-1], np.broadcast_to(array[:1], (4, 3)), read_only):
        np.testing.assert_array_equal(tensor_from_array(other).float().numpy(), other.astype(np.float32))


def test_tensors_that_numpy_cannot_share():
    z = torch.tensor([1 + 2j])
    assert array_from_tensor(z.conj()).tolist() == [1 - 2j]
    assert array_from_tensor(z.conj().imag).tolist() == [-2.0]
    assert array_from_tensor(torch.ones(2, requires_grad=True) * 2).tolist() == [2.0, 2.0]
    assert array_from_tensor(torch.ones(1, 3).expand(2, 3)).flags.c_contiguous
