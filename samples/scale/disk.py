"""The files of a measurement: links that stand for members, and a plain copy against the clock."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

_CHUNK = 8 << 20


def link_members(files: Sequence[Path], folder: Path, n_members: int, n_files: int) -> list[Path]:
    """Give the first `n_files` files N names, in turn, in a folder that holds nothing else; takes no space."""
    folder.mkdir()
    links = [folder / f"member_{index:04}.pt" for index in range(n_members)]
    for index, link in enumerate(links):
        os.link(files[index % n_files], link)
    return links


def time_copy(files: Sequence[Path], folder: Path) -> float:
    """Seconds that it takes to copy files until they are on the disk. The copies are removed again.

    Read and written piece by piece: the kernel's own copy may share blocks instead of writing them.
    """
    folder.mkdir()
    try:
        os.sync()  # what was written before shall not weigh on this
        begin = time.perf_counter()
        for file in files:
            with file.open("rb", buffering=0) as source, (folder / file.name).open("wb") as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
                target.flush()
                os.fsync(target.fileno())
        return time.perf_counter() - begin
    finally:
        shutil.rmtree(folder)


def size_bytes(paths: Sequence[Path]) -> int:
    """What files hold together, each name counted."""
    return sum(path.stat().st_size for path in paths)


def missing_space(folder: Path, needed_bytes: int) -> str:
    """Why so many bytes do not fit beside what is there; empty if they do."""
    free = shutil.disk_usage(folder).free
    return "" if needed_bytes <= free else f"needs {needed_bytes / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free"
