"""A package -> what its manifest says, without hashing or running anything."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ensexport.package.manifest import parse_manifest, read_manifest_bytes


def describe_package(path: str | Path) -> dict[str, Any]:
    """Return what a package says of itself.

    Args:
        path: The folder. Its manifest is checked in itself; no other file is opened, so nothing of it is proven.

    Returns:
        `package`, `manifest_sha256`, `is_verified` (False: `verify_package` is what checks the files) and `manifest`.

    Raises:
        PackageError: The manifest cannot be trusted.
    """
    content = read_manifest_bytes(path)
    return {
        "package": str(path),
        "manifest_sha256": hashlib.sha256(content).hexdigest(),
        "is_verified": False,
        "manifest": parse_manifest(content, path),
    }
