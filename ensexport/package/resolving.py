"""An ARTIFACT of the command line -> the model files it stands for: itself, or the models of a package."""

from __future__ import annotations

from pathlib import Path

from ensexport.errors import UsageError
from ensexport.package.manifest import MODEL_FORMATS, read_manifest
from ensexport.spec import FORMAT_BY_SUFFIX, artifact_format


def artifact_files(artifact: str | Path) -> list[str]:
    """Return the model files, the ONNX file of a package first.

    Args:
        artifact: A file, or a package folder; its files are not checked, `ensexport verify` does that.

    Raises:
        UsageError: The suffix is unknown, or the package holds no file that can be loaded by its suffix.
        PackageError: The package's manifest cannot be used.
    """
    if not Path(artifact).is_dir():
        artifact_format(artifact)
        return [str(artifact)]
    listed = {entry["path"]: entry["format"] for entry in read_manifest(artifact)["files"]}
    ordered = sorted((MODEL_FORMATS.index(kind), path) for path, kind in listed.items() if kind in MODEL_FORMATS)
    files = [str(Path(artifact) / path) for _, path in ordered if Path(path).suffix in FORMAT_BY_SUFFIX]
    if not files:
        raise UsageError(
            f"'{artifact}' holds no model that ends in {', '.join(FORMAT_BY_SUFFIX)}.",
            hint="Triton's model.pt is TorchScript: copy it to a name that ends in .ts.",
        )
    return files
