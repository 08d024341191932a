"""Names of Triton's models. Standard library only: one that cannot be used is refused before torch is loaded."""

from __future__ import annotations

import re

from ensexport.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def check_model_name(name: str) -> str:
    """Return a name that can be a folder's, part of a URL, and the `name` in the configuration, which must be equal.

    Raises:
        UsageError: It cannot.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"cannot name a Triton model {name!r}: expected letters, digits, '_', '-' and '.', at most 128.",
            hint="Write --name fraud.",
        )
    return name
