"""ONNX files in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from ensexport.errors import ArtifactError, OpsetError, ProviderError
from ensexport.runtime.runner import METADATA_KEY, Array

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


class OnnxRunner:
    """One `InferenceSession`."""

    def __init__(
        self,
        path: Path,
        *,
        provider: str = "cpu",
        optimization: str = "all",
        options: ort.SessionOptions | None = None,
    ) -> None:
        options = options or ort.SessionOptions()
        options.graph_optimization_level = _LEVELS[optimization]
        options.log_severity_level = 3
        self.session = make_session(path, provider, options)
        self.provider = PROVIDERS[provider]
        self.optimization = optimization
        self._input_types = {value.name: value.type for value in self.session.get_inputs()}
        self._outputs = [value.name for value in self.session.get_outputs()]
        self._output_types = {value.name: value.type for value in self.session.get_outputs()}

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run the session on inputs by name."""
        if not any(kind in _NOT_NUMPY for kind in (*self._input_types.values(), *self._output_types.values())):
            return dict(zip(self._outputs, self.session.run(None, dict(feed)), strict=True))
        values = {name: _ort_value(array, self._input_types[name]) for name, array in feed.items()}
        results = self.session.run_with_ort_values(None, values)
        return {
            name: _numpy(value, self._output_types[name]) for name, value in zip(self._outputs, results, strict=True)
        }


def make_session(path: Path, provider: str, options: ort.SessionOptions) -> ort.InferenceSession:
    """Create a session on exactly the provider asked for.

    Raises:
        ProviderError: It is not installed, or the session runs on another one.
        OpsetError: The runtime does not support the file's opset.
        ArtifactError: The file cannot be loaded.
    """
    wanted = PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise ProviderError(
            f"{wanted} is not available: this ONNX Runtime offers {', '.join(ort.get_available_providers())}.",
            hint="Install the ONNX Runtime build for that device, or use --target cpu.",
        )
    if provider != "cpu" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    try:
        session = ort.InferenceSession(str(path), options, providers=[wanted])
    except Exception as error:
        text = str(error).strip()
        if "opset" in text.lower() or "ir version" in text.lower():
            raise OpsetError(
                f"ONNX Runtime {ort.__version__} does not run '{path.name}': {text[:240]}",
                hint="Use a lower --opset.",
            ) from error
        raise ArtifactError(f"ONNX Runtime cannot load '{path.name}': {text[:400]}") from error
    if session.get_providers()[0] != wanted:
        raise ProviderError(
            f"{wanted} was asked for, and ONNX Runtime fell back to {session.get_providers()[0]}.",
            hint="Check the driver and the CUDA libraries; `--target cpu` runs without them.",
        )
    return session


def read_onnx_metadata(path: Path) -> str:
    """Return the metadata text of an ONNX file without loading its weights."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ArtifactError(f"cannot read '{path}' as ONNX: {str(error).strip()[:200]}") from error
    return next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), "")


def _ort_value(array: Array, kind: str) -> Any:
    if kind in _NOT_NUMPY:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _NOT_NUMPY[kind])
    return ort.OrtValue.ortvalue_from_numpy(array)


def _numpy(value: Any, kind: str) -> Array:
    if kind not in _NOT_NUMPY:
        return value.numpy()  # type: ignore[no-any-return]
    import ml_dtypes
    import torch

    # OrtValue.numpy() has no bfloat16; DLPack has, and torch reads it.
    tensor = torch.utils.dlpack.from_dlpack(value.to_dlpack())
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
