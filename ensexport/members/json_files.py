"""JSON files that lie beside weights, read as data: bounded in size, and every failure is one error."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from ensexport.errors import CheckpointError
from ensexport.members.wording import quote_path


def read_json_object(path: str | Path, *, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: The file.
        max_bytes: A larger file is refused, so that a planted one cannot fill the memory.

    Raises:
        CheckpointError: There is no such regular file, it cannot be read, is too large, or holds no JSON object.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # asked before opening: a pipe would block for ever
            raise CheckpointError(f"cannot read {quote_path(path)}: it is not a regular file.", hint="Remove it.")
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            data = file.read(max_bytes + 1)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"cannot read {quote_path(path)}: {reason}.", hint="Check its permissions.") from error
    if len(data) > max_bytes:
        raise CheckpointError(
            f"cannot read {quote_path(path)}: expected at most {max_bytes} bytes, got {max(size_bytes, len(data))}.",
            hint="Look at what it holds: such a file is usually a few thousand bytes.",
        )
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        text = str(error)[:200]
        raise CheckpointError(
            f"cannot read {quote_path(path)}: it is no JSON ({text}).", hint="Copy it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"cannot use {quote_path(path)}: expected a JSON object, got {type(content).__name__}.",
            hint="Copy it again.",
        )
    return content
