"""One interface for all artifact formats; each format's own code is imported when it is used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ensexport.errors import ArtifactError, UsageError
from ensexport.spec import TensorSpec, artifact_format, parse_inputs

Array = npt.NDArray[np.generic]
METADATA_KEY = "ensexport"
MEMBER_KEY = "ensexport_member"  # in a member's own file, which `extract` wrote
METADATA_FILE = "ensexport.json"
HIDDEN_METHOD = "members"  # of a TorchScript file: returns the hidden outputs
HIDDEN_NODE = "members_of_{}"  # of a `.pt2` file: the node of a hidden output, by its place among them
_PROVIDERS = ("cpu", "cuda", "tensorrt")
_METADATA = {
    "n_members": int,
    "member_axis": int,
    "inputs": list,
    "per_member": list,
    "outputs": list,
    "dims": dict,
    "members": list,
}


def member_specs(metadata: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    """The inputs as one member takes them; the artifact's own may have another dtype."""
    return parse_inputs(metadata.get("member_inputs") or metadata["inputs"])


class Runner(Protocol):
    """A loaded artifact.

    Attributes:
        provider: What runs it, such as `CPUExecutionProvider`, or `torch-cpu` for torch's own formats.
        optimization: ONNX Runtime's graph optimisation level: `all` or `disabled`; empty elsewhere.
    """

    provider: str
    optimization: str

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run on inputs by name (in the file's order) and return outputs by name."""


def open_runners(
    path: Path, *, provider: str = "cpu", output_names: tuple[str, ...], hidden: tuple[str, ...] = ()
) -> Iterator[Runner]:
    """Load an artifact in every way it will be checked: ONNX with graph optimisation off and on, one after the other.

    Args:
        path: The artifact; its suffix tells the format.
        provider: `cpu`, `cuda` or `tensorrt`.
        output_names: Names for formats that return a bare tensor or tuple.
        hidden: Names of the members' outputs that the file holds and does not return; the runner returns them too.

    Raises:
        ArtifactError: The file cannot be loaded.
        ProviderError: The provider is not there, or another one took its place.
        OpsetError: The runtime does not know the file's opset.
        UsageError: The suffix or the provider is unknown.
    """
    if provider not in _PROVIDERS:
        raise UsageError(f"unknown provider {provider!r}: expected one of {', '.join(_PROVIDERS)}.")
    kind = artifact_format(path)
    if kind == "onnx":
        from ensexport.runtime.onnx_runner import HiddenRunner, OnnxRunner, options_for

        for level in ("disabled", "all"):
            if hidden:
                yield HiddenRunner(path, provider=provider, optimization=level, hidden=hidden)
            else:
                yield OnnxRunner(path, provider=provider, optimization=level, options=options_for(path))
        return
    from ensexport.runtime.torch_runner import ExportedRunner, ScriptRunner

    runner = ScriptRunner if kind == "torchscript" else ExportedRunner
    yield runner(path, provider=provider, output_names=output_names, hidden=hidden)


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
    return check_metadata(text, path)


def check_metadata(text: str, path: Path) -> dict[str, Any]:
    """Return what a file's metadata says, from its text.

    Args:
        text: The metadata as the file holds it; empty if it has none.
        path: The file, for messages.

    Raises:
        ArtifactError: It was not written by ensexport.
    """
    hint = "Give a file that ensexport packed."
    if not text:
        raise ArtifactError(f"cannot use '{path}': it carries no ensexport metadata.", hint=hint)
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"cannot use '{path}': its ensexport metadata is no JSON.", hint=hint) from error
    values = metadata if isinstance(metadata, dict) else {}
    for name, kind_of_value in _METADATA.items():
        if type(values.get(name)) is not kind_of_value:
            raise ArtifactError(f"cannot use '{path}': its ensexport metadata has no usable '{name}'.", hint=hint)
    if len(values["members"]) != values["n_members"]:
        raise ArtifactError(
            f"cannot use '{path}': its ensexport metadata names {len(values['members'])} members, and counts "
            f"{values['n_members']}.",
            hint=hint,
        )
    return values
