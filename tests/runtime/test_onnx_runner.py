import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from ensexport.errors import ArtifactError, OpsetError, ProviderError, UsageError
from ensexport.runtime import open_runners
from ensexport.runtime.onnx_runner import OnnxRunner, make_session

from .files import damage, identity, onnx_file

KINDS = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def test_an_artifact_is_opened_with_graph_optimisation_off_and_on(tmp_path):
    runners = list(open_runners(identity(tmp_path / "a.onnx"), output_names=("y",)))
    assert [runner.optimization for runner in runners] == ["disabled", "all"]
    assert {runner.provider for runner in runners} == {"CPUExecutionProvider"}
    levels = [runner.session.get_session_options().graph_optimization_level for runner in runners]
    assert levels == [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL]
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    for runner in runners:
        np.testing.assert_array_equal(runner.run({"x": x})["y"], x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 2), (1, 2), ()], ids=str)
def test_every_dtype_goes_in_and_comes_out(tmp_path, kind, shape):
    path = identity(tmp_path / "a.onnx", KINDS[kind], ["b", 2] if shape else [])
    x = np.arange(6).reshape(3, 2)[: shape[0]].astype(dtype_of(kind)) if shape else np.array(1).astype(dtype_of(kind))
    y = OnnxRunner(path).run({"x": x})["y"]
    assert y.dtype == dtype_of(kind)
    assert y.shape == shape
    np.testing.assert_array_equal(y.astype(np.float64), x.astype(np.float64))


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_arrays_with_strides_of_their_own(tmp_path, kind):
    path = identity(tmp_path / "a.onnx", KINDS[kind])
    x = np.arange(6).reshape(2, 3).astype(dtype_of(kind)).T
    assert not x.flags.c_contiguous
    np.testing.assert_array_equal(OnnxRunner(path).run({"x": x})["y"].astype(float), x.astype(float))


def mixed(path):
    """bfloat16 and float32 in, bfloat16, float32 and int64 out, in another order."""
    nodes = [
        helper.make_node("Cast", ["b"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["wide", "a"], ["sum"]),
        helper.make_node("Cast", ["a"], ["narrow"], to=TensorProto.BFLOAT16),
        helper.make_node("Shape", ["a"], ["shape"]),
    ]
    inputs = {"b": (TensorProto.BFLOAT16, ["n"]), "a": (TensorProto.FLOAT, ["n"])}
    outputs = {
        "narrow": (TensorProto.BFLOAT16, ["n"]),
        "shape": (TensorProto.INT64, [1]),
        "sum": (TensorProto.FLOAT, ["n"]),
    }
    return onnx_file(path, nodes, inputs, outputs)


def test_inputs_and_outputs_go_by_name(tmp_path):
    runner = OnnxRunner(mixed(tmp_path / "a.onnx"))
    a, b = np.array([1.0, 2.0], np.float32), np.array([10.0, 20.0], ml_dtypes.bfloat16)
    for feed in ({"a": a, "b": b}, {"b": b, "a": a}):
        outputs = runner.run(feed)
        assert list(outputs) == ["narrow", "shape", "sum"]
        assert outputs["sum"].tolist() == [11.0, 22.0]
        assert outputs["narrow"].astype(float).tolist() == [1.0, 2.0]
        assert outputs["shape"].tolist() == [2]


def test_outputs_outlive_the_next_run(tmp_path):
    runner = OnnxRunner(identity(tmp_path / "a.onnx", TensorProto.BFLOAT16))
    first = runner.run({"x": np.ones((3, 2), ml_dtypes.bfloat16)})["y"]
    for value in (2, 3, 4):
        runner.run({"x": np.full((3, 2), value, ml_dtypes.bfloat16)})
    assert first.astype(float).tolist() == [[1.0, 1.0]] * 3


def test_a_bfloat16_input_takes_no_other_dtype(tmp_path):
    runner = OnnxRunner(identity(tmp_path / "a.onnx", TensorProto.BFLOAT16))
    with pytest.raises(UsageError, match="input 'x' takes bfloat16, got float32"):
        runner.run({"x": np.ones((3, 2), np.float32)})


@pytest.mark.parametrize(
    ("options", "limit"),
    [({"opset": 99}, "till opset [0-9]+"), ({"ir_version": 99}, "max supported IR version: [0-9]+")],
    ids=["opset", "ir version"],
)
def test_a_file_newer_than_the_runtime(tmp_path, options, limit):
    path = identity(tmp_path / "future.onnx", **options)
    with pytest.raises(OpsetError, match=rf"{ort.__version__} does not run 'future\.onnx'.*\({limit}\)") as caught:
        list(open_runners(path, output_names=("y",)))
    assert caught.value.exit_code == 6
    assert "--opset" in caught.value.hint


@pytest.mark.parametrize("how", ["empty", "half", "random", "html"])
def test_a_damaged_file_is_not_taken_for_a_new_one(tmp_path, how):
    folder = tmp_path / "opset 20, ir version 9"
    folder.mkdir()
    path = damage(identity(folder / "a.onnx"), how)
    with pytest.raises(ArtifactError, match=r"ONNX Runtime cannot load 'a\.onnx': ") as caught:
        OnnxRunner(path)
    assert str(folder) not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ArtifactError, match=r"ONNX Runtime cannot load 'a\.onnx': .*(NO_SUCHFILE|exist)"):
        OnnxRunner(tmp_path / "a.onnx")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    ("provider", "name"), [("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")]
)
def test_a_provider_that_is_not_there(tmp_path, capsys, provider, name):
    with pytest.raises(
        ProviderError, match=f"{name} (is not available|was asked for)|cannot run on {provider}: .* cannot be found"
    ) as caught:
        list(open_runners(identity(tmp_path / "a.onnx"), provider=provider, output_names=("y",)))
    assert caught.value.exit_code == 7
    assert "--target cpu" in caught.value.hint or "use the CPU" in caught.value.hint
    assert capsys.readouterr().out == ""


def test_a_provider_this_build_does_not_have(tmp_path):
    known = {name.lower() for name in ort.get_available_providers()}
    missing = [name for name in ("cuda", "tensorrt") if f"{name}executionprovider" not in known]
    if not missing:
        pytest.skip("this ONNX Runtime has all the providers that can be asked for")
    with pytest.raises(ProviderError, match=r"is not available: this ONNX Runtime offers .*CPUExecutionProvider"):
        make_session(identity(tmp_path / "a.onnx"), missing[0], ort.SessionOptions())


@pytest.mark.parametrize("suffix", ["onnx", "ts", "pt2"])
def test_an_unknown_provider(tmp_path, suffix):
    with pytest.raises(UsageError, match="unknown provider 'gpu': expected one of cpu, cuda, tensorrt"):
        list(open_runners(tmp_path / f"a.{suffix}", provider="gpu", output_names=("y",)))


def test_the_sessions_options_are_the_callers(tmp_path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    runner = OnnxRunner(identity(tmp_path / "a.onnx"), optimization="disabled", options=options)
    assert runner.session.get_session_options().intra_op_num_threads == 1
