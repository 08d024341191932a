"""TorchScript and `.pt2` files in torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

from ensexport.errors import ArtifactError, ProviderError
from ensexport.runtime.runner import METADATA_FILE, Array


class _TorchRunner:
    """Calls a loaded program positionally and names what it returns."""

    optimization = ""

    def __init__(self, path: Path, *, provider: str, output_names: tuple[str, ...]) -> None:
        self._device = torch.device("cpu" if provider == "cpu" else "cuda")
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise ProviderError("torch sees no CUDA device.", hint="Use --target cpu to check the file on the CPU.")
        self.provider = f"torch-{self._device.type}"
        self._names = output_names
        self._program = self._load(path)

    def _load(self, path: Path) -> Any:
        raise NotImplementedError

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run on inputs in the file's order."""
        tensors = [tensor_from_array(array).to(self._device) for array in feed.values()]
        with torch.no_grad():
            result = self._program(*tensors)
        results = result if isinstance(result, tuple | list) else (result,)
        return {name: array_from_tensor(value) for name, value in zip(self._names, results, strict=True)}


class ScriptRunner(_TorchRunner):
    """A TorchScript file."""

    def _load(self, path: Path) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated in favour of torch.export
            try:
                return torch.jit.load(str(path), map_location=self._device)  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                raise ArtifactError(f"torch.jit.load cannot read '{path}': {str(error).strip()[:200]}") from error


class ExportedRunner(_TorchRunner):
    """A `.pt2` file."""

    def _load(self, path: Path) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module = torch.export.load(str(path)).module()
            except Exception as error:
                raise ArtifactError(f"torch.export.load cannot read '{path}': {str(error).strip()[:200]}") from error
        return module.to(self._device)


def read_torch_metadata(path: Path) -> str:
    """Return the metadata text of a TorchScript or `.pt2` file. Reads the archive only: no code of it runs."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            name = next((n for n in archive.namelist() if n.endswith(f"extra/{METADATA_FILE}")), None)
            return "" if name is None else archive.read(name).decode()
    except (zipfile.BadZipFile, OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"cannot read '{path}': {error}") from error


def array_from_tensor(tensor: torch.Tensor) -> Array:
    """Return a tensor's values as a NumPy array on the CPU; bfloat16 as `ml_dtypes.bfloat16`."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def tensor_from_array(array: Array) -> torch.Tensor:
    """The inverse of `array_from_tensor`."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))
