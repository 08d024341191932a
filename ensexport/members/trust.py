"""What the user allowed beyond plain weights. Only the command line (or the caller of the library) can allow it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trust:
    """Files that run code when they are opened, and whether they may.

    Attributes:
        allow_pickle: Pickles that name other classes than tensors and plain values, whole modules say.
        trust_code: TorchScript and `.pt2` programs.
    """

    allow_pickle: bool = False
    trust_code: bool = False


NO_TRUST = Trust()
