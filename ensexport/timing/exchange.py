"""Arrays between processes, as `.npz` files. bfloat16, which NumPy cannot save, travels as its bits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from ensexport.compare import Array


def write_feed(path: Path, feed: Mapping[str, Array]) -> None:
    """Save named arrays, in order.

    Each entry is called `NUMBER:DTYPE:NAME`, so that no name can meet a parameter of `numpy.savez`.
    """
    arrays = {
        f"{number}:{array.dtype}:{name}": array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array
        for number, (name, array) in enumerate(feed.items())
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]


def read_feed(path: Path, casts: Mapping[str, str] | None = None) -> dict[str, Array]:
    """Load what `write_feed` saved.

    Args:
        path: The file.
        casts: Dtype name -> the one that arrays of it become.
    """
    feed: dict[str, Array] = {}
    with np.load(path, allow_pickle=False) as stored:
        for key in stored.files:
            _, dtype, name = key.split(":", 2)
            feed[name] = stored[key].view(ml_dtypes.bfloat16) if dtype == "bfloat16" else stored[key]
    return cast_feed(feed, casts or {})


def cast_feed(feed: Mapping[str, Array], casts: Mapping[str, str]) -> dict[str, Array]:
    """Arrays by name; those of a dtype that `casts` names in another one."""
    return {name: array.astype(casts.get(str(array.dtype), array.dtype), copy=False) for name, array in feed.items()}
