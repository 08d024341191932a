"""Members made of several files: which names may be followed from one file to the next, and one digest for all.

An index or a table inside a checkpoint names other files. It may name its neighbours and nothing else: a name
with a folder in it, or a link that leads out of the folder, could make another user's file part of a member.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ensexport.errors import CheckpointError, IncompleteCheckpointError
from ensexport.members.wording import quote_path


def neighbour(folder: Path, name: str, *, named_in: Path) -> Path:
    """Return the path of a file that a checkpoint's own table names, after looking where it leads.

    Args:
        folder: The folder that holds the member.
        name: What the table says; not to be trusted.
        named_in: The file that holds the table, for messages.

    Raises:
        CheckpointError: The name is no plain file name, or a link that leaves the folder. The one link that
            may is that of the Hugging Face cache, `snapshots/REVISION/x -> ../../blobs/DIGEST`.
        IncompleteCheckpointError: There is no such file.

    Source: huggingface_hub 1.x, guides/manage-cache (the layout of the cache).
    """
    if not is_plain_name(name):
        raise CheckpointError(
            f"{quote_path(named_in)} names {name!r}: expected the plain name of a file beside it.",
            hint="Put all files of the member into one folder, and their plain names into the table.",
        )
    path = folder / name
    try:
        target, home = path.resolve(strict=True), folder.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise IncompleteCheckpointError(
            f"the member {quote_path(folder)} is not whole: {quote_path(named_in)} names {name!r}, which is not there.",
            hint="Copy or download the missing file into the folder.",
        ) from error
    if target.parent != home and target.parent not in _blob_folders(home):
        raise CheckpointError(
            f"refused {quote_path(path)}: it is a link that leaves the folder, to {quote_path(target)}.",
            hint="Copy the file itself into the folder.",
        )
    return path


def is_plain_name(name: object) -> bool:
    """True for the name of a file without any folder in it: no separator, no `..`, nothing unprintable."""
    return (
        isinstance(name, str)
        and name not in {"", ".", ".."}
        and name.isprintable()
        and not {"/", "\\", ":"} & set(name)
    )


def digest_of_files(digests: Mapping[str, str]) -> str:
    """Return the digest of a member of several files.

    It is the SHA-256 of what `sha256sum FILES | LC_ALL=C sort -k 2` prints in the member's folder: one line
    `DIGEST  NAME` a file, sorted by name.

    Args:
        digests: Name of each file -> its SHA-256, in hexadecimal.
    """
    lines = [f"{digests[name]}  {name}\n" for name in sorted(digests)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _blob_folders(home: Path) -> list[Path]:
    """Where the links of a snapshot may lead: its own repository's blobs."""
    return [folder.parent.parent / "blobs" for folder in [home, *home.parents] if folder.parent.name == "snapshots"]
