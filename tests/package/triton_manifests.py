"""The part of a manifest that a Triton configuration is made of, without a packed file."""

from __future__ import annotations

from typing import Any

import numpy as np

NUMBERS = {"bfloat16": "float32"}


def tensor(name: str, *shape: int | str, dtype: str = "float32", is_optional: bool = False) -> dict[str, Any]:
    """One entry of a manifest's inputs."""
    return {"name": name, "dtype": dtype, "shape": list(shape), "is_per_member": False, "is_optional": is_optional}


def make_manifest(
    inputs: list[dict[str, Any]] | None = None, outputs: list[dict[str, Any]] | None = None, **changes: Any
) -> dict[str, Any]:
    """Three members of 4 numbers and 3 classes that emit probs; arguments replace what stands at the top."""
    return {
        "tool": {"name": "ensexport", "version": "1.2.3"},
        "name": "fraud",
        "n_members": 3,
        "member_axis": 1,
        "inputs": inputs or [tensor("x", "batch", 4)],
        "outputs": outputs or [tensor("y.probs", "batch", 3)],
        "dims": {"batch": [1, None], "rows": [1, None], "seq": [1, 512]},
        "emit": [{"output": "y", "names": ["probs"], "class_axis": -1}],
        "dtypes": None,
        "plan": {"target": "portable"},
    } | changes


def make_samples(manifest: dict[str, Any], sizes: int = 2) -> dict[str, np.ndarray]:
    """Numbers that count up, `sizes` in each dynamic dim; optional inputs are left out."""
    samples = {}
    for entry in manifest["inputs"]:
        if not entry["is_optional"]:
            shape = [sizes if isinstance(dim, str) else dim for dim in entry["shape"]]
            values = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
            samples[entry["name"]] = values.astype(NUMBERS.get(entry["dtype"], entry["dtype"]))
    return samples
