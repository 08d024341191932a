"""TorchScript and `.pt2` files in torch."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import fx

from ensexport.errors import ArtifactError, ProviderError
from ensexport.runtime.runner import HIDDEN_METHOD, HIDDEN_NODE, METADATA_FILE, Array


class _TorchRunner:
    """Calls a loaded program positionally and names what it returns."""

    optimization = ""

    def __init__(
        self, path: Path, *, provider: str, output_names: tuple[str, ...], hidden: tuple[str, ...] = ()
    ) -> None:
        self._device = torch.device("cpu" if provider == "cpu" else "cuda")
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise ProviderError(
                f"cannot run '{path.name}' on {provider}: torch sees no CUDA device.",
                hint="Use --target cpu to check the file on the CPU.",
            )
        self.provider = f"torch-{self._device.type}"
        self._names = output_names
        self._hidden = hidden
        self._program = self._load(path)

    def _load(self, path: Path) -> Any:
        raise NotImplementedError

    def _run_hidden(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The members' outputs that the file does not return."""
        raise NotImplementedError

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run on inputs in the file's order."""
        tensors = [tensor_from_array(array).to(self._device) for array in feed.values()]
        with torch.no_grad():
            result = self._program(*tensors)
            hidden = self._run_hidden(tensors) if self._hidden else ()
        results = result if isinstance(result, tuple | list) else (result,)
        if len(results) != len(self._names):
            raise ArtifactError(
                f"the file returns {len(results)} outputs: expected {len(self._names)} ({', '.join(self._names)}).",
                hint="Pack again.",
            )
        named = zip((*self._names, *self._hidden), (*results, *hidden), strict=True)
        return {name: array_from_tensor(value) for name, value in named}


class ScriptRunner(_TorchRunner):
    """A TorchScript file."""

    def _load(self, path: Path) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated in favour of torch.export
            try:
                return torch.jit.load(str(path), map_location=self._device)  # type: ignore[no-untyped-call]
            except Exception as error:
                raise _unreadable("torch.jit.load", path, error) from error

    def _run_hidden(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        method = getattr(self._program, HIDDEN_METHOD, None)
        if method is None:
            raise ArtifactError(
                f"the file has no method '{HIDDEN_METHOD}' to compare its members by.", hint="Pack again."
            )
        return tuple(method(*tensors))


class ExportedRunner(_TorchRunner):
    """A `.pt2` file."""

    def _load(self, path: Path) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module = torch.export.load(str(path)).module()
            except Exception as error:
                raise _unreadable("torch.export.load", path, error) from error
        return module.to(self._device)

    def _run_hidden(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        names = [HIDDEN_NODE.format(index) for index in range(len(self._hidden))]
        listening = _Listening(self._program, names)
        listening.run(*tensors)
        missing = [name for name in names if name not in listening.heard]
        if missing:
            raise ArtifactError(f"the file has no node '{missing[0]}' to compare its members by.", hint="Pack again.")
        return [listening.heard[name] for name in names]


class _Listening(fx.Interpreter):
    """Runs a program and keeps the values of some nodes."""

    def __init__(self, module: fx.GraphModule, names: Sequence[str]) -> None:
        super().__init__(module)
        self._names = names
        self.heard: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self._names:
            self.heard[n.name] = result
        return result


def _unreadable(loader: str, path: Path, error: Exception) -> ArtifactError:
    text = " ".join(str(error).replace(str(path), path.name).split())[:200]
    return ArtifactError(f"{loader} cannot read '{path.name}': {text}", hint="Give a file that ensexport packed.")


def read_torch_metadata(path: Path) -> str:
    """Return the metadata text of a TorchScript or `.pt2` file. Reads the archive only: no code of it runs.

    Raises:
        ArtifactError: The file is no such archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((n for n in archive.namelist() if n.endswith(f"extra/{METADATA_FILE}")), None)
            return "" if name is None else archive.read(name).decode()
    except (zipfile.BadZipFile, NotImplementedError, zlib.error, OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"cannot read '{path}': {error}.", hint="Give a file that ensexport packed.") from error


def array_from_tensor(tensor: torch.Tensor) -> Array:
    """Return a tensor's values as a NumPy array on the CPU; bfloat16 as `ml_dtypes.bfloat16`."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def tensor_from_array(array: Array) -> torch.Tensor:
    """The inverse of `array_from_tensor`."""
    # Not np.ascontiguousarray, which gives a scalar an axis. A copy where torch would warn of a read-only array.
    array = np.array(array, order="C", copy=None if array.flags.writeable else True)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
