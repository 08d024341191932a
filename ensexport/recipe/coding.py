"""A recipe as text: JSON, compressed, in letters that any metadata can hold."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from typing import Any

from ensexport.errors import ArtifactError

KEY = "recipe"
"""Where in a file's metadata it stands."""
VERSION = 1
_MAX_BYTES = 2**28
_HINT = "The file is damaged: pack again."


def encode(recipe: Mapping[str, Any]) -> str:
    """Write a recipe; equal ones give equal text."""
    text = json.dumps({"version": VERSION, **recipe}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def decode(text: str) -> dict[str, Any]:
    """Read what `encode` wrote; the text may come from anybody.

    Raises:
        ArtifactError: It is no recipe, is larger than any would be, or is of a later version.
    """
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(base64.b64decode(text, validate=True), _MAX_BYTES)
        recipe = json.loads(data)
    except (binascii.Error, zlib.error, ValueError, RecursionError) as error:
        raise ArtifactError("its recipe cannot be read.", hint=_HINT) from error
    if not unpacker.eof or not isinstance(recipe, dict) or type(recipe.get("version")) is not int:
        raise ArtifactError("its recipe cannot be read.", hint=_HINT)
    if recipe["version"] != VERSION:
        raise ArtifactError(
            f"its recipe is of version {recipe['version']}, and this ensexport reads version {VERSION}.",
            hint="Use the ensexport that packed it, or pack again.",
        )
    return recipe
