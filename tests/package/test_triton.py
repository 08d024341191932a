import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ensexport.errors import TritonError, UsageError
from ensexport.package.triton import ServingOptions, check_model_name, file_format, model_places, triton_files
from tests.cli.projects import load_script
from tests.package import triton_rules
from tests.package.triton_manifests import make_manifest, make_samples, tensor
from tests.package.triton_packs import PACKS, make_pack

ROOT = Path(__file__).parents[2]


def configure(manifest, samples=None, **options):
    """Return the configuration as Triton reads it, and all files."""
    made = triton_files(manifest, make_samples(manifest) if samples is None else samples, **options)
    return triton_rules.parse(made.files["config.pbtxt"]), made


# -- of packed files ---------------------------------------------------------------------------------

SERVED = {
    "mlp": (64, {"x": [4]}, {"output": [3, 3]}),
    "mlp, members first": (0, {"x": [-1, 4]}, {"output": [3, -1, 3]}),
    "cnn": (64, {"x": [1, 8, 8]}, {"output.probs": [3], "output.entropy": [1]}),
    "tokens": (64, {"ids": [-1], "keep": [-1]}, {"output.mean": [-1, 3], "output.std": [-1, 3]}),
    "per member": (0, {"x": [3, -1, 4]}, {"output": [-1, 3, 3]}),
    "fixed batch": (0, {"x": [8, 4]}, {"output": [8, 3, 3]}),
    "float16": (64, {"x": [4]}, {"output.mean": [3]}),
    "weights": (64, {"x": [4]}, {"output.mean": [3], "output.var": [3]}),
    "scalar": (0, {"x": [-1, 4], "scale": [1]}, {"output.mean": [1]}),
    "rows": (64, {"x": [1]}, {"output.mean": [1]}),
}


@pytest.mark.parametrize("name", PACKS)
def test_a_packed_file_loads_warms_up_and_answers_as_configured(tmp_path, name):
    pack = make_pack(tmp_path, name)
    made = triton_files(pack.manifest, pack.samples, name="fraud")
    for path, content in made.files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    config = triton_rules.parse(made.files["config.pbtxt"])
    triton_rules.load(config, pack.session)

    max_batch_size, inputs, outputs = SERVED[name]
    assert config.max_batch_size == made.max_batch_size == max_batch_size
    assert {io.name: list(io.dims) for io in config.input} == inputs
    assert {io.name: list(io.dims) for io in config.output} == outputs
    assert [io.name for io in config.output] == [value.name for value in pack.session.get_outputs()]

    direct = dict(zip(outputs, pack.session.run(list(outputs), pack.samples), strict=True))
    runs = triton_rules.warm_up(config, tmp_path, pack.session)
    assert [(label, size) for label, size, _ in runs] == (
        [("batch_1", 1), ("batch_64", 64)] if max_batch_size else [("sample", 1)]
    )
    for _, _, results in runs:
        for output, array in results.items():
            expected = direct[output][:1] if max_batch_size else direct[output]
            np.testing.assert_allclose(
                array.ravel(), expected.ravel(), rtol=1e-3 if name == "float16" else 1e-5, atol=1e-6
            )


@pytest.mark.parametrize("name", ["mlp", "cnn", "tokens", "rows"])
def test_requests_that_triton_puts_together_are_answered_as_if_alone(tmp_path, name):
    pack = make_pack(tmp_path, name)
    config, _ = configure(pack.manifest, pack.samples, name="fraud")
    served = {
        io.name: pack.samples[io.name].reshape(
            [2, *(io.dims if io.HasField("reshape") else pack.samples[io.name].shape[1:])]
        )
        for io in config.input
    }
    requests = [
        {key: array[:1] for key, array in served.items()},
        served,
        {key: array[1:] for key, array in served.items()},
    ]
    alone = [triton_rules.answer(config, pack.session, [request])[0] for request in requests]
    together = triton_rules.answer(config, pack.session, requests)
    for one, other in zip(alone, together, strict=True):
        for output in one:
            np.testing.assert_allclose(one[output], other[output], rtol=1e-5, atol=1e-6)


def test_member_weights_can_be_given_where_triton_does_not_batch(tmp_path):
    pack = make_pack(tmp_path, "weights")
    config, made = configure(pack.manifest, pack.samples, name="fraud", options=ServingOptions(max_batch_size=0))
    triton_rules.load(config, pack.session)
    assert [(io.name, io.optional, list(io.dims)) for io in config.input] == [
        ("x", False, [-1, 4]), ("member_weights", True, [3]),
    ]  # fmt: skip
    first = {**pack.samples, "member_weights": np.float32([1, 0, 0])}
    one, all_alike = (triton_rules.answer(config, pack.session, [request])[0] for request in (first, pack.samples))
    assert np.abs(one["output.var"]).max() < 1e-6 < np.abs(all_alike["output.var"]).max()
    assert not any("member_weights" in message.inputs for message in config.model_warmup)
    assert made.notes == ("Triton does not batch requests: max_batch_size 0 was asked for.",)


def test_member_weights_are_left_out_where_triton_batches(tmp_path):
    pack = make_pack(tmp_path, "weights")
    _, made = configure(pack.manifest, pack.samples, name="fraud")
    assert b"member_weights" not in made.files["config.pbtxt"]
    assert any("'member_weights' keeps its default" in note for note in made.notes)


def test_a_torchscript_file_takes_and_returns_what_is_configured_by_place(tmp_path):
    pack = make_pack(tmp_path, "tokens", suffixes=(".onnx", ".ts"))
    config, made = configure(pack.manifest, pack.samples, name="fraud", kind="torchscript")
    assert (config.platform, config.backend, config.default_model_filename) == (
        "pytorch_libtorch",
        "pytorch",
        "model.pt",
    )
    assert [io.name for io in config.input] == ["INPUT__0", "INPUT__1"]
    assert [io.name for io in config.output] == ["OUTPUT__0", "OUTPUT__1"]
    assert not config.HasField("optimization")
    assert [message.count for message in config.model_warmup] == [2, 2]
    assert b"# 'ids' in the file" in made.files["config.pbtxt"]
    assert "Triton calls the output 'output.std' OUTPUT__1." in made.notes

    script = load_script(tmp_path / "model.ts")
    forward = script.forward.schema.arguments[1:]
    assert [str(argument.type) for argument in forward] == ["Tensor"] * len(config.input)
    with torch.no_grad():
        results = script(*(torch.from_numpy(array) for array in pack.samples.values()))
    names = [value.name for value in pack.session.get_outputs()]
    for io, result, expected in zip(config.output, results, pack.session.run(names, pack.samples), strict=True):
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-6)
        assert triton_rules.data_type(io.data_type) == expected.dtype.name


# -- field by field ----------------------------------------------------------------------------------


def test_every_field_of_a_configuration_is_as_it_should_be():
    manifest = make_manifest(
        [tensor("x", "batch", "seq", 4), tensor("ids", "batch", dtype="int64")],
        [tensor("y.probs", "batch", 3), tensor("y.entropy", "batch")],
        emit=[{"output": "y", "names": ["probs", "entropy"], "class_axis": -1}],
    )
    options = ServingOptions(max_batch_size=16, queue_delay_us=250, preferred_batch_sizes=(4, 16), instance_count=2)
    config, made = configure(manifest, labels=["a", "b", "c"], options=options)
    expected = """
        name: "fraud" platform: "onnxruntime_onnx" backend: "onnxruntime" default_model_filename: "model.onnx"
        max_batch_size: 16
        input { name: "x" data_type: TYPE_FP32 dims: -1 dims: 4 }
        input { name: "ids" data_type: TYPE_INT64 dims: 1 reshape { } }
        output { name: "y.probs" data_type: TYPE_FP32 dims: 3 label_filename: "labels.txt" }
        output { name: "y.entropy" data_type: TYPE_FP32 dims: 1 reshape { } }
        dynamic_batching { preferred_batch_size: 4 preferred_batch_size: 16 max_queue_delay_microseconds: 250 }
        instance_group { count: 2 kind: KIND_AUTO }
        optimization { execution_accelerators {
            gpu_execution_accelerator { name: "cuda" parameters { key: "use_tf32" value: "0" } } } }
        model_warmup { name: "batch_1" batch_size: 1
            inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 dims: 4 input_data_file: "input_0.bin" } }
            inputs { key: "ids" value { data_type: TYPE_INT64 dims: 1 input_data_file: "input_1.bin" } } }
        model_warmup { name: "batch_16" batch_size: 16
            inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 dims: 4 input_data_file: "input_0.bin" } }
            inputs { key: "ids" value { data_type: TYPE_INT64 dims: 1 input_data_file: "input_1.bin" } } }
    """
    assert config == text_format.Parse(expected, model_config_pb2.ModelConfig())
    assert text_format.Parse(text_format.MessageToString(config), model_config_pb2.ModelConfig()) == config
    assert model_config_pb2.ModelConfig.FromString(config.SerializeToString()) == config
    assert sorted(made.files) == ["config.pbtxt", "labels.txt", "warmup/input_0.bin", "warmup/input_1.bin"]
    assert {path: file_format(path) for path in made.files} == {
        "config.pbtxt": "triton_config", "labels.txt": "labels", "warmup/input_0.bin": "warmup",
        "warmup/input_1.bin": "warmup",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("target", "kind", "accelerators"),
    [
        ("portable", "KIND_AUTO", [("cuda", {"use_tf32": "0"})]),
        ("cpu", "KIND_CPU", []),
        ("cuda", "KIND_GPU", [("cuda", {"use_tf32": "0"})]),
        ("tensorrt", "KIND_GPU", [("tensorrt", {"precision_mode": "FP32"}), ("cuda", {"use_tf32": "0"})]),
    ],
)
def test_instances_and_providers_follow_the_target(target, kind, accelerators):
    config, _ = configure(make_manifest(plan={"target": target}))
    assert [(model_config_pb2.ModelInstanceGroup.Kind.Name(g.kind), g.count) for g in config.instance_group] == [
        (kind, 1)
    ]
    found = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [(entry.name, dict(entry.parameters)) for entry in found] == accelerators
    assert config.HasField("optimization") == bool(accelerators)


@pytest.mark.parametrize(
    ("changes", "precision"),
    [
        ({}, "FP32"),
        ({"dtypes": {"members": "float32", "inside": "float16", "io": "float32"}}, "FP16"),
        ({"dtypes": {"members": "float16", "inside": "float32", "io": "float16"}}, "FP32"),
        ({"inputs": [tensor("x", "batch", 4, dtype="float16")]}, "FP16"),
    ],
    ids=["float32", "float16 inside", "float32 inside", "float16 members"],
)
def test_tensorrt_computes_in_float16_only_where_the_file_does(changes, precision):
    config, _ = configure(make_manifest(**changes, plan={"target": "tensorrt"}))
    first = config.optimization.execution_accelerators.gpu_execution_accelerator[0]
    assert dict(first.parameters) == {"precision_mode": precision}


def test_tf32_can_be_allowed():
    config, _ = configure(make_manifest(plan={"target": "cuda"}), options=ServingOptions(allows_tf32=True))
    assert not config.HasField("optimization")


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"])
def test_each_dtype_has_its_name_and_its_bytes(dtype, kind):
    manifest = make_manifest([tensor("x", "batch", 4, dtype=dtype)], [tensor("y.probs", "batch", 3, dtype=dtype)])
    config, made = configure(manifest, kind=kind)
    assert triton_rules.data_type(config.input[0].data_type) == dtype
    assert triton_rules.data_type(config.output[0].data_type) == dtype
    np.testing.assert_array_equal(np.frombuffer(made.files["warmup/input_0.bin"], dtype), np.arange(4).astype(dtype))


def test_what_lies_behind_a_model_of_one_row_is_not_batched_dynamically():
    config, _ = configure(make_manifest(dims={"batch": [1, 1]}))
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")
    assert [message.name for message in config.model_warmup] == ["batch_1"]


def test_the_reason_for_not_batching_stands_in_the_file():
    _, made = configure(make_manifest([tensor("x", 8, 4)]))
    text = made.files["config.pbtxt"].decode()
    assert "# no batching: input 'x' of shape (8, 4) begins with 8, which is no dynamic dimension\n" in text
    assert text.startswith("# fraud: 3 networks in one graph, packed by ensexport 1.2.3\n")


def test_the_bytes_depend_on_the_manifest_alone(tmp_path):
    script = (
        "import hashlib, json\n"
        "from tests.package.triton_manifests import make_manifest, make_samples\n"
        "from ensexport.package.triton import triton_files\n"
        "manifest = make_manifest()\n"
        "made = triton_files(manifest, make_samples(manifest), labels=['a', 'b', 'c'])\n"
        "print(json.dumps({path: hashlib.sha256(data).hexdigest() for path, data in made.files.items()}))\n"
        "import sys; assert 'torch' not in sys.modules and 'tritonclient' not in sys.modules"
    )
    outs = set()
    for seed in ("1", "2"):
        environment = {
            "PYTHONPATH": str(ROOT),
            "PYTHONHASHSEED": seed,
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C",
            "TZ": f"X{seed}",
        }
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        outs.add(done.stdout)
    assert len(outs) == 1
    assert list(json.loads(outs.pop())) == ["config.pbtxt", "labels.txt", "warmup/input_0.bin"]


# -- where files go, and names -----------------------------------------------------------------------


def test_a_model_of_several_files_is_a_folder():
    assert model_places("onnx") == {"model.onnx": "1/model.onnx"}
    assert model_places("torchscript") == {"model.ts": "1/model.pt"}
    assert model_places("onnx", has_external_data=True) == {
        "model.onnx": "1/model.onnx/model.onnx", "model.onnx.data": "1/model.onnx/model.onnx.data",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["fraud", "fraud-2.onnx", "_x", "0", "a" * 128])
def test_names_that_are_folders_and_parts_of_urls(name):
    config, _ = configure(make_manifest(), name=name)
    assert config.name == check_model_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a b", "a\n", "é", "-x", "a" * 129])
def test_other_names_are_refused(name):
    with pytest.raises(UsageError) as caught:
        check_model_name(name)
    assert f"cannot name a Triton model {name!r}" in str(caught.value)


def test_without_a_name_there_is_no_model():
    with pytest.raises(UsageError, match="cannot name a Triton model ''"):
        configure(make_manifest(name=None))


# -- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manifest", "kind", "message"),
    [
        (make_manifest([tensor("x", "batch", 4, dtype="bfloat16")]), "onnx",
         "cannot serve input 'x' of shape (batch, 4) with Triton: expected one of bool, uint8, int8, int16, int32, "
         "int64, float16, float32, float64, got bfloat16. Pack with --io-dtype float32"),
        (make_manifest(outputs=[tensor("y.probs", "batch", 3, dtype="bfloat16")]), "torchscript",
         "cannot serve output 'y.probs' of shape (batch, 3) with Triton"),
        (make_manifest(outputs=[tensor("y.probs", "batch", 0)]), "onnx",
         "output 'y.probs' of shape (batch, 0) with Triton: expected sizes of 1 or more"),
        (make_manifest(outputs=[tensor("y.probs")]), "torchscript",
         "output 'y.probs' of shape () with Triton: its PyTorch backend takes and returns no 0-d tensors"),
        (make_manifest([tensor("x", "batch", 4), tensor("member_weights", 3, is_optional=True)]), "torchscript",
         "input 'member_weights' of shape (3) with Triton: its PyTorch backend takes no optional inputs"),
    ],
    ids=["bfloat16 input", "bfloat16 output", "nothing in it", "0-d", "optional"],
)  # fmt: skip
def test_what_triton_cannot_hold_is_refused(manifest, kind, message):
    with pytest.raises(TritonError) as caught:
        configure(manifest, kind=kind)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue_delay_us": -1}, "the queue delay is -1 microseconds"),
        ({"instance_count": 0}, "the instance count is 0"),
        ({"preferred_batch_sizes": (0,)}, "the preferred batch size 0 is not in 1 to 64"),
        ({"preferred_batch_sizes": (65,)}, "the preferred batch size 65 is not in 1 to 64"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError) as caught:
        configure(make_manifest(), options=ServingOptions(**options))
    assert message in str(caught.value)


def test_other_formats_are_refused():
    with pytest.raises(UsageError, match="cannot serve a file of format 'pt2' with Triton"):
        configure(make_manifest(), kind="pt2")
