"""ONNX files in ONNX Runtime."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort

from ensexport.errors import ArtifactError, OpsetError, ProviderError, UsageError
from ensexport.runtime.libraries import load_libraries
from ensexport.runtime.runner import MEMBER_KEY, METADATA_KEY, Array

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_NOT_NUMPY = {"tensor(bfloat16)": onnx.TensorProto.BFLOAT16}
# ONNX Runtime multiplies float32 with 10 bits of mantissa on recent GPUs unless told not to: no proof of float32 could
# pass. https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#use_tf32
_PROVIDER_OPTIONS = {"cuda": {"use_tf32": "0"}}
_LARGE_BYTES = 500_000_000
# ONNX Runtime's own words for a file newer than itself (model_load_utils.h and model.cc, 1.24 to 1.31).
_TOO_NEW = re.compile(r"Unsupported model IR version|under development and support for this is limited")


class OnnxRunner:
    """One `InferenceSession`.

    Attributes:
        is_plain: Do all inputs and outputs have dtypes of NumPy's own, so that `session.run` takes arrays?

    With `is_silent` ONNX Runtime writes nothing on stderr where it refuses inputs; the error is raised all the same.
    """

    def __init__(
        self,
        path: Path,
        *,
        provider: str = "cpu",
        optimization: str = "all",
        options: ort.SessionOptions | None = None,
        provider_options: Mapping[str, str] | None = None,
        shown: Sequence[str] = (),
        is_silent: bool = False,
    ) -> None:
        options = options or ort.SessionOptions()
        options.graph_optimization_level = _LEVELS[optimization]
        options.log_severity_level = 4 if is_silent else 3
        self.session = make_session(path, provider, options, provider_options, shown=shown)
        self.provider = PROVIDERS[provider]
        self.optimization = optimization
        self._input_types = {value.name: value.type for value in self.session.get_inputs()}
        self._outputs = [value.name for value in self.session.get_outputs()]
        self._output_types = {value.name: value.type for value in self.session.get_outputs()}
        types = (*self._input_types.values(), *self._output_types.values())
        self.is_plain = not any(kind in _NOT_NUMPY for kind in types)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run the session on inputs by name.

        Raises:
            UsageError: An array of another dtype is given for a bfloat16 input: its bits would be misread.
        """
        if self.is_plain:
            return dict(zip(self._outputs, self.session.run(None, dict(feed)), strict=True))
        values = {name: _ort_value(name, array, self._input_types.get(name, "")) for name, array in feed.items()}
        results = self.session.run_with_ort_values(None, values)
        return {
            name: _numpy(value, self._output_types[name]) for name, value in zip(self._outputs, results, strict=True)
        }


class HiddenRunner:
    """A file and the values that it holds and does not return: two sessions, so that the file's own runs as it ships.

    A large file has one session for both, which holds the weights once.

    Attributes:
        provider: As for `OnnxRunner`.
        optimization: Likewise.
    """

    def __init__(
        self, path: Path, *, provider: str, optimization: str, hidden: Sequence[str], is_silent: bool = False
    ) -> None:
        self._behind, *files = (
            OnnxRunner(
                path,
                provider=provider,
                optimization=optimization,
                options=options_for(path),
                shown=shown,
                is_silent=is_silent,
            )
            for shown in ((hidden,) if is_large(path) else (hidden, ()))
        )
        self._file = files[0] if files else None
        self.provider, self.optimization = self._behind.provider, optimization

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run both on inputs by name; what the file returns is its own."""
        return {**self._behind.run(feed), **({} if self._file is None else self._file.run(feed))}


def options_for(path: Path) -> ort.SessionOptions:
    """Options with which a large file is checked in little more memory than its weights have.

    Weights are not copied into other layouts for some kernels, and memory is given back after each use: the arena
    doubles what it holds, 4.4 instead of 2.0 GB for ten ViT-B at batch 13. Results are the same kernels'.

    Source: ONNX Runtime 1.31, onnxruntime_session_options_config_keys.h.
    """
    options = ort.SessionOptions()
    if is_large(path):
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def is_large(path: Path) -> bool:
    """Is memory what matters when a file, with its external data, is checked?"""
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0) >= _LARGE_BYTES


def make_session(
    path: Path,
    provider: str,
    options: ort.SessionOptions,
    provider_options: Mapping[str, str] | None = None,
    *,
    shown: Sequence[str] = (),
) -> ort.InferenceSession:
    """Create a session on exactly the provider asked for.

    Args:
        path: The ONNX file.
        provider: `cpu`, `cuda` or `tensorrt`.
        options: Of the session.
        provider_options: Of the provider, such as `enable_cuda_graph`.
        shown: Values of the graph that the session is to return too, behind its outputs.

    Raises:
        ProviderError: It is not installed, lacks a library, or the session runs on another one.
        OpsetError: The runtime does not support the file's opset.
        ArtifactError: The file cannot be loaded.
    """
    wanted = PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise ProviderError(
            f"{wanted} is not available: this ONNX Runtime offers {', '.join(ort.get_available_providers())}.",
            hint="Install the ONNX Runtime build for that device, or use --target cpu.",
        )
    if provider != "cpu":
        load_libraries(provider)
    chosen = {**_PROVIDER_OPTIONS.get(provider, {}), **(provider_options or {})}
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):  # why it falls back
            source = _showing(path, shown, options) if shown else str(path)
            session = ort.InferenceSession(source, options, providers=[(wanted, chosen)])
    except Exception as error:
        text = " ".join(str(error).replace(str(path), path.name).split())
        too_new = _TOO_NEW.search(text)
        if too_new is not None:
            limit = re.search(r"(till opset|max supported IR version:) (\d+)", text)
            raise OpsetError(
                f"ONNX Runtime {ort.__version__} does not run '{path.name}', which is of a newer version than it knows"
                + (f" ({limit[0]})." if limit else f": {text[too_new.start() :][:240]}."),
                hint="Use a lower --opset, or a newer ONNX Runtime.",
            ) from error
        raise ArtifactError(f"ONNX Runtime cannot load '{path.name}': {text[:400]}") from error
    if session.get_providers()[0] != wanted:
        reason = " ".join(said.getvalue().replace("*", "").split()).removeprefix("EP Error ")[:400]
        raise ProviderError(
            f"{wanted} was asked for, and ONNX Runtime fell back to {session.get_providers()[0]}"
            + (f": {reason}" if reason else "."),
            hint="Check the driver and the CUDA libraries; `--target cpu` runs without them.",
        )
    return session


def _showing(path: Path, shown: Sequence[str], options: ort.SessionOptions) -> bytes:
    """The model with more outputs: protobuf joins two messages by writing one behind the other.

    Source: https://protobuf.dev/programming-guides/encoding/#last-one-wins
    """
    more = onnx.ModelProto()
    for name in shown:
        more.graph.output.add().name = name  # ONNX Runtime infers the type
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent.resolve()))
    added: bytes = more.SerializeToString()
    return path.read_bytes() + added


def tf32_options(provider: str, *, tf32: bool) -> dict[str, str]:
    """Options of a provider that let it compute products of float32 in TF32; only CUDA's has one."""
    return {"use_tf32": "1"} if tf32 and provider == "cuda" else {}


def offered_providers() -> list[str]:
    """The providers that this ONNX Runtime was built with; whether one works is for `check_provider` to say."""
    return [name for name, wanted in PROVIDERS.items() if wanted in ort.get_available_providers()]


@functools.cache
def check_provider(provider: str) -> None:
    """Find out whether a provider runs here, on the smallest graph there is.

    Raises:
        ProviderError: It does not.
    """
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "smallest",
        [value("x", onnx.TensorProto.FLOAT, [1])],
        [value("y", onnx.TensorProto.FLOAT, [1])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="ensexport-") as folder:
        path = Path(folder) / "smallest.onnx"
        onnx.save(model, path)
        make_session(path, provider, options)


def read_onnx_metadata(path: Path) -> str:
    """Return the metadata text of an ONNX file; external data is not read.

    Raises:
        ArtifactError: The file is not ONNX.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ArtifactError(
            f"cannot read '{path}' as ONNX: {str(error).strip()[:200]}.", hint="Give a file that ensexport packed."
        ) from error
    texts: dict[str, str] = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY not in texts and MEMBER_KEY in texts:
        raise ArtifactError(
            f"cannot use '{path}' as an ensemble: it is {_member_text(texts[MEMBER_KEY])}, taken out of a packed file.",
            hint="Give the packed file.",
        )
    return texts.get(METADATA_KEY, "")


def _member_text(text: str) -> str:
    try:
        member = json.loads(text)["member"]
        return f"member {member['index']} ('{member['name']}')"
    except (ValueError, TypeError, KeyError):
        return "one member"


def _ort_value(name: str, array: Array, kind: str) -> Any:
    if kind in _NOT_NUMPY:
        if array.dtype.name != "bfloat16":
            raise UsageError(f"input '{name}' takes bfloat16, got {array.dtype}.", hint="Cast it.")
        bits = np.asarray(array, order="C").view(np.uint16)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _NOT_NUMPY[kind])
    return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))


def _numpy(value: Any, kind: str) -> Array:
    if kind not in _NOT_NUMPY:
        return value.numpy()  # type: ignore[no-any-return]
    if value.device_name() == "cpu":  # where there may be no torch
        shape = value.shape()
        data = ctypes.string_at(value.data_ptr(), 2 * math.prod(shape))
        return np.frombuffer(bytearray(data), ml_dtypes.bfloat16).reshape(shape)
    import torch
    from torch.utils.dlpack import from_dlpack

    from ensexport.runtime.torch_runner import array_from_tensor

    # OrtValue.numpy() has no bfloat16; DLPack has, and torch reads it. A copy, since it is ONNX Runtime's memory;
    # `__dlpack__` is newer than the oldest ONNX Runtime that is supported.
    capsule = value if hasattr(value, "__dlpack__") else value._ortvalue.to_dlpack()
    tensor: torch.Tensor = from_dlpack(capsule)
    return array_from_tensor(tensor.clone())
