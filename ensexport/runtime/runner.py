"""One interface for all artifact formats; each format's own code is imported when it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ensexport.errors import ArtifactError
from ensexport.spec import artifact_format

Array = npt.NDArray[np.generic]
METADATA_KEY = "ensexport"
METADATA_FILE = "ensexport.json"


class Runner(Protocol):
    """A loaded artifact.

    Attributes:
        provider: What runs it, such as `CPUExecutionProvider`, or `torch` for torch's own formats.
        optimization: ONNX Runtime's graph optimisation level: `all` or `disabled`; empty elsewhere.
    """

    provider: str
    optimization: str

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run on inputs by name (in the file's order) and return outputs by name."""


def open_runners(path: Path, *, provider: str = "cpu", output_names: tuple[str, ...]) -> list[Runner]:
    """Load an artifact in every way it will be checked: ONNX with graph optimisation off and on.

    Args:
        path: The artifact; its suffix tells the format.
        provider: `cpu`, `cuda` or `tensorrt`.
        output_names: Names for formats that return a bare tensor or tuple.

    Raises:
        ArtifactError: The file cannot be loaded.
        ProviderError: The provider is not there, or another one took its place.
        OpsetError: The runtime does not know the file's opset.
    """
    kind = artifact_format(path)
    if kind == "onnx":
        from ensexport.runtime.onnx_runner import OnnxRunner

        return [OnnxRunner(path, provider=provider, optimization=level) for level in ("disabled", "all")]
    from ensexport.runtime.torch_runner import ExportedRunner, ScriptRunner

    runner = ScriptRunner if kind == "torchscript" else ExportedRunner
    return [runner(path, provider=provider, output_names=output_names)]


def read_metadata(path: Path) -> dict[str, Any]:
    """Return what the tool wrote into an artifact: members, inputs, outputs.

    Raises:
        ArtifactError: The file cannot be read or was not written by ensexport.
    """
    if not path.is_file():
        raise ArtifactError(f"cannot read '{path}': there is no such file.", hint="Check the path.")
    kind = artifact_format(path)
    if kind == "onnx":
        from ensexport.runtime.onnx_runner import read_onnx_metadata

        text = read_onnx_metadata(path)
    else:
        from ensexport.runtime.torch_runner import read_torch_metadata

        text = read_torch_metadata(path)
    try:
        metadata = json.loads(text or "")
    except ValueError as error:
        raise ArtifactError(
            f"cannot use '{path}': it carries no ensexport metadata.",
            hint="Give a file that ensexport packed.",
        ) from error
    if not isinstance(metadata, dict) or "n_members" not in metadata:
        raise ArtifactError(f"cannot use '{path}': its ensexport metadata is incomplete.")
    return metadata
