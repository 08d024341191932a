"""An artifact -> what it says of itself and what it is, without running it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ensexport.errors import ArtifactError
from ensexport.runtime.runner import read_metadata
from ensexport.spec import artifact_format


def describe_artifact(path: str | Path) -> dict[str, Any]:
    """Return format, size and digest of a file that ensexport wrote, and its metadata.

    Args:
        path: An `.onnx`, `.ts` or `.pt2` file. Nothing in it is run.

    Returns:
        `path`, `format`, `size_bytes`, `sha256`, `opset` (ONNX only, else None), and the metadata: `members` (`name`,
        `sha256` of the checkpoint, `weights_sha256`), `inputs`, `per_member`, `outputs`, `dims`, `target`, `plan` ...

    Raises:
        ArtifactError: The file cannot be read, or was not written by ensexport.
    """
    file = Path(path)
    metadata = read_metadata(file)
    kind = artifact_format(file)
    try:
        with file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        size_bytes = file.stat().st_size
    except OSError as error:
        raise ArtifactError(f"cannot read '{path}': {error.strerror}.", hint="Check its permissions.") from error
    opset = _opset(file) if kind == "onnx" else None
    own = {"path": str(path), "format": kind, "size_bytes": size_bytes, "sha256": sha256, "opset": opset}
    return own | {name: value for name, value in metadata.items() if name not in own and name not in _FOR_PROGRAMS}


_FOR_PROGRAMS = {"recipe", "initializers"}
"""What `swap` reads of the metadata, and says nothing to people."""


def _opset(path: Path) -> int | None:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
