"""What is known of every file that is written, whatever made it: its name, its external data, its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ensexport.spec import Artifact

RENAMED_KEY = "initializers"
"""Where an ONNX file's metadata says which packed weights have another name in it."""
_CHUNK_BYTES = 2**22


@dataclass(frozen=True)
class Output:
    """One file to be written.

    Attributes:
        kind: Its format.
        staged: Where to write it.
        target: What it will be called.
    """

    kind: str
    staged: Path
    target: Path


def data_file(path: Path) -> Path:
    """Where an ONNX file's external data lies, if it has any."""
    return path.with_name(f"{path.name}.data")


def describe_artifact(staged: Path, target: Path, kind: str, tell: Callable[[int], None]) -> Artifact:
    """Size and digest of a file that is about to be put in place.

    Args:
        staged: The file.
        target: What it will be called.
        kind: Its format.
        tell: Called with the number of bytes read so far.
    """
    digest, buffer, done = hashlib.sha256(), bytearray(_CHUNK_BYTES), 0
    with staged.open("rb") as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            done += count
            tell(done)
    return Artifact(str(target), kind, done, digest.hexdigest())


def describe_artifacts(files: Sequence[Output], tell: Callable[[int, int], None]) -> list[Artifact]:
    """Sizes and digests of files that are about to be put in place.

    Args:
        files: The files.
        tell: Called as `(done, total)` with bytes.
    """
    total, done = sum(file.staged.stat().st_size for file in files), 0
    found = []
    for file in files:
        before = done

        def tell_more(count: int, before: int = before) -> None:
            tell(before + count, total)

        found.append(describe_artifact(file.staged, file.target, file.kind, tell_more))
        done += found[-1].size_bytes
    return found
