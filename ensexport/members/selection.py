"""Where in a checkpoint the weights lie, as far as the user said so. Standard library only, for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["ema", "raw"]


@dataclass(frozen=True)
class Selection:
    """What the user said about where the weights lie.

    Attributes:
        weights: Averaged (`ema`) or as trained (`raw`) where a file holds both; None takes the averaged ones.
        key: The key they lie under, dots for keys inside of keys; None means the first known one (`CONTAINER_KEYS`).
        strip_prefix: What to take off every name; names without it are left out. None means: find out.
    """

    weights: Kind | None = None
    key: str | None = None
    strip_prefix: str | None = None


NO_SELECTION = Selection()
