"""A packed file as a model of a Triton model repository.

    fraud/config.pbtxt
    fraud/labels.txt                     where labels are given
    fraud/warmup/input_0.bin
    fraud/1/model.onnx                   or the folder 1/model.onnx with model.onnx and its data, or 1/model.pt

All here are functions of a manifest, so that the configuration says what the manifest says. A server skips what else
lies in a model's folder.

Source: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_repository.md and
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto; docs/triton.md explains the
choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ensexport import emission
from ensexport.errors import UsageError
from ensexport.package.pbtxt import Enum, Message, Value, map_entry, write_message
from ensexport.package.triton_batching import Batching, decide_batching
from ensexport.package.triton_labels import label_files
from ensexport.package.triton_name import check_model_name
from ensexport.package.triton_tensors import KINDS, Tensor, read_tensors
from ensexport.package.triton_warmup import Array, warmup_fields

CONFIG_FILE = "config.pbtxt"
VERSION = "1"
_BACKENDS = {"onnx": ("onnxruntime_onnx", "onnxruntime"), "torchscript": ("pytorch_libtorch", "pytorch")}
_FILES = {"onnx": "model.onnx", "torchscript": "model.pt"}
_INSTANCES = {"portable": "KIND_AUTO", "cpu": "KIND_CPU", "cuda": "KIND_GPU", "tensorrt": "KIND_GPU"}
Fields = tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class ServingOptions:
    """How a model is to be served; what a file cannot say of itself.

    Attributes:
        max_batch_size: Rows of the largest batch; None chooses, 0 turns batching off.
        queue_delay_us: How long a request may wait for others, in microseconds.
        preferred_batch_sizes: Sizes that are run at once when reached. Triton advises against any for most models.
        instance_count: Copies of the model a device. One ensemble fills a device's cores, and each copy holds all
            weights: 1, also on CPUs, where Triton's ONNX Runtime backend would make 2.
        allows_tf32: May CUDA multiply float32 with 10 bits of mantissa? Files are proven without.

    Raises:
        UsageError: A number is out of range.
    """

    max_batch_size: int | None = None
    queue_delay_us: int = 100
    preferred_batch_sizes: tuple[int, ...] = ()
    instance_count: int = 1
    allows_tf32: bool = False

    def __post_init__(self) -> None:
        if self.queue_delay_us < 0:
            raise UsageError(f"the queue delay is {self.queue_delay_us} microseconds: expected 0 or more.")
        if self.instance_count < 1:
            raise UsageError(f"the instance count is {self.instance_count}: expected 1 or more.")


DEFAULTS = ServingOptions()


@dataclass(frozen=True)
class TritonFiles:
    """What lies in a model's folder beside the model file.

    Attributes:
        files: Path in the folder -> bytes.
        max_batch_size: As configured.
        notes: What a client must know, a sentence each, for the model card and as warnings.
    """

    files: Mapping[str, bytes]
    max_batch_size: int
    notes: tuple[str, ...]


def model_places(kind: str, *, has_external_data: bool = False) -> dict[str, str]:
    """Return where model files go: their name in a package folder -> path in the model's folder.

    Args:
        kind: `onnx` or `torchscript`.
        has_external_data: Do the weights of the ONNX file lie in `model.onnx.data` beside it?

    Source: ONNX Models and TorchScript Models in
    https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_repository.md: a model of several
    files is a folder called model.onnx.
    """
    if kind == "torchscript":
        return {"model.ts": f"{VERSION}/model.pt"}
    if not has_external_data:
        return {"model.onnx": f"{VERSION}/model.onnx"}
    return {name: f"{VERSION}/model.onnx/{name}" for name in ("model.onnx", "model.onnx.data")}


def file_format(path: str) -> str:
    """Return what the manifest calls a file of `triton_files`: `triton_config`, `warmup` or `labels`."""
    return {CONFIG_FILE: "triton_config"}.get(path, "warmup" if "/" in path else "labels")


def triton_files(
    manifest: Mapping[str, Any],
    samples: Mapping[str, Array],
    *,
    kind: str = "onnx",
    name: str | None = None,
    labels: Sequence[str] | None = None,
    options: ServingOptions = DEFAULTS,
) -> TritonFiles:
    """Return the configuration of a packed file and the files that it names.

    Args:
        manifest: Of the package; read are `name`, `n_members`, `inputs`, `outputs`, `dims`, `emit`, `dtypes`,
            `plan.target` and `tool.version`.
        samples: Input name -> one stored sample, in the file's shape. Optional inputs need none.
        kind: `onnx` or `torchscript`: which file is served.
        name: Of the model and its folder; by default the manifest's.
        labels: One a class, for the outputs that hold class scores.
        options: How it is to be served.

    Raises:
        UsageError: The name, a label or an option is malformed.
        TritonError: Triton cannot serve the file, or not as was asked.
    """
    if kind not in KINDS:
        raise UsageError(f"cannot serve a file of format {kind!r} with Triton: expected one of {', '.join(KINDS)}.")
    name = check_model_name(name or manifest["name"] or "")
    inputs, outputs = read_tensors(manifest, kind)
    n_members = manifest["n_members"]
    batching = decide_batching(inputs, outputs, manifest["dims"], n_members, options.max_batch_size)
    _check_preferred(options, batching)
    files: dict[str, bytes] = {}
    label_places: Mapping[str, str] = {}
    if labels is not None:
        emitted = emission.from_json(manifest["emit"], [tensor.name for tensor in outputs])
        files, label_places = label_files(labels, outputs, emitted, n_members=n_members, is_batched=batching.is_batched)
    warmup, warmup_files = warmup_fields(inputs, samples, batching, kind)
    platform, backend = _BACKENDS[kind]
    target = manifest["plan"]["target"]
    config = Message(
        (
            ("#", _heading(manifest, name, batching)),
            ("name", name),
            ("platform", platform),
            ("backend", backend),
            ("default_model_filename", _FILES[kind]),
            ("max_batch_size", batching.max_batch_size),
            ("input", _inputs(inputs, batching)),
            ("output", _outputs(outputs, batching, label_places)),
            *_dynamic_batching(options, batching),
            ("instance_group", (_instance_group(target, options),)),
            *(_optimization(manifest, target, options) if kind == "onnx" else ()),
            ("model_warmup", warmup),
        )
    )
    return TritonFiles(
        {CONFIG_FILE: write_message(config).encode(), **files, **warmup_files},
        batching.max_batch_size,
        _notes(inputs, outputs, batching),
    )


def _check_preferred(options: ServingOptions, batching: Batching) -> None:
    for size in options.preferred_batch_sizes:
        if not 1 <= size <= batching.max_batch_size:
            raise UsageError(f"the preferred batch size {size} is not in 1 to {batching.max_batch_size}.")


def _heading(manifest: Mapping[str, Any], name: str, batching: Batching) -> str:
    version = manifest["tool"]["version"]
    lines = [
        f"{name}: {manifest['n_members']} networks in one graph, packed by ensexport {version}",
        "fields: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto",
    ]
    return "\n".join(lines if batching.is_batched else [*lines, f"no batching: {batching.reason}"])


def _inputs(inputs: Sequence[Tensor], batching: Batching) -> tuple[Message, ...]:
    """The `input` messages.

    The ONNX Runtime backend refuses an optional input of a model with `max_batch_size` above 0, and does not need to
    be told of it: it is an initializer that a request may replace (ModelInstanceState::ValidateInputs in
    https://github.com/triton-inference-server/onnxruntime_backend/blob/main/src/onnxruntime.cc). So it is left out.
    """
    optional: Fields = (("optional", True),)
    return tuple(
        tensor.message(is_batched=batching.is_batched, more=optional if tensor.is_optional else ())
        for tensor in inputs
        if not (tensor.is_optional and batching.is_batched)
    )


def _outputs(outputs: Sequence[Tensor], batching: Batching, labels: Mapping[str, str]) -> tuple[Message, ...]:
    return tuple(
        tensor.message(
            is_batched=batching.is_batched,
            more=(("label_filename", labels[tensor.name]),) if tensor.name in labels else (),
        )
        for tensor in outputs
    )


def _dynamic_batching(options: ServingOptions, batching: Batching) -> Fields:
    """Source: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/batcher.md."""
    if batching.max_batch_size < 2:
        return ()
    preferred: Fields = ()
    if options.preferred_batch_sizes:
        preferred = (("preferred_batch_size", options.preferred_batch_sizes),)
    return (("dynamic_batching", Message((*preferred, ("max_queue_delay_microseconds", options.queue_delay_us)))),)


def _instance_group(target: str, options: ServingOptions) -> Message:
    """A portable file runs on the GPU where the server has one, as it does with KIND_AUTO, else on the CPU."""
    return Message((("count", options.instance_count), ("kind", Enum(_INSTANCES[target]))))


def _optimization(manifest: Mapping[str, Any], target: str, options: ServingOptions) -> Fields:
    """The execution providers on a GPU, in ONNX Runtime's order of preference.

    TensorRT in float16 only where the file computes in it. CUDA without TF32, as files are proven; servers without a
    GPU do not read it.

    Source: https://github.com/triton-inference-server/onnxruntime_backend/blob/main/README.md
    """
    if target == "cpu":
        return ()
    accelerators = []
    if target == "tensorrt":
        precision = "FP16" if _inside(manifest) == "float16" else "FP32"
        accelerators.append(_accelerator("tensorrt", "precision_mode", precision))
    if not options.allows_tf32:
        accelerators.append(_accelerator("cuda", "use_tf32", "0"))
    if not accelerators:
        return ()
    inner = Message((("gpu_execution_accelerator", tuple(accelerators)),))
    return (("optimization", Message((("execution_accelerators", inner),))),)


def _accelerator(name: str, key: str, value: str) -> Message:
    return Message((("name", name), ("parameters", map_entry(key, value))))


def _inside(manifest: Mapping[str, Any]) -> str:
    """What the file computes in: as it says, or float16 if its inputs or outputs are."""
    if manifest["dtypes"]:
        return str(manifest["dtypes"]["inside"])
    ends = {entry["dtype"] for entry in (*manifest["inputs"], *manifest["outputs"])}
    return "float16" if "float16" in ends else "float32"


def _notes(inputs: Sequence[Tensor], outputs: Sequence[Tensor], batching: Batching) -> tuple[str, ...]:
    tensors = (*inputs, *outputs)
    notes = [f"Triton calls the {t.role} '{t.name}' {t.served_name}." for t in tensors if t.name != t.served_name]
    if batching.is_batched:
        notes.append(f"Triton batches requests, up to {batching.max_batch_size} rows.")
        notes += [
            f"The {tensor.role} '{tensor.name}' has one value a row: (rows, 1) for Triton's clients."
            for tensor in tensors
            if len(tensor.shape) == 1 and not tensor.is_optional
        ]
        notes += [
            f"The input '{tensor.name}' keeps its default: Triton takes no optional inputs where it batches. "
            "Set max_batch_size 0 to give it in a request."
            for tensor in inputs
            if tensor.is_optional
        ]
    else:
        notes.append(f"Triton does not batch requests: {batching.reason}.")
    return tuple(notes)
