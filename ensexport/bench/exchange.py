"""Arrays between processes, as `.npz` files. bfloat16, which NumPy cannot save, travels as its bits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
_MARK = "bfloat16:"


def write_feed(path: Path, feed: Mapping[str, Array]) -> None:
    """Save named arrays, in order."""
    arrays = {
        (_MARK + name if array.dtype == ml_dtypes.bfloat16 else name): array.view(np.uint16)
        if array.dtype == ml_dtypes.bfloat16
        else array
        for name, array in feed.items()
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]


def read_feed(path: Path) -> dict[str, Array]:
    """Load what `write_feed` saved."""
    with np.load(path, allow_pickle=False) as stored:
        return {
            name.removeprefix(_MARK): stored[name].view(ml_dtypes.bfloat16) if name.startswith(_MARK) else stored[name]
            for name in stored.files
        }
