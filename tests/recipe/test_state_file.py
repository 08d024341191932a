"""safetensors written tensor by tensor: as the library reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ensexport.errors import ExportError
from ensexport.recipe.state_file import Entry, StateFile

TENSORS = {
    "flags": torch.tensor([True, False, True]),
    "b.half": torch.randn(3, dtype=torch.float16),
    "a.half": torch.randn(1, 5, dtype=torch.float32).to(torch.bfloat16),
    "wide": torch.randn(2, 3, dtype=torch.float64),
    "count": torch.tensor(7),
    "none": torch.empty(0, 4),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "moved": torch.randn(4, 3).t(),
    "naïve \"name\"": torch.ones(2),
}  # fmt: skip


def _entries() -> dict[str, Entry]:
    return {name: Entry(tuple(tensor.shape), tensor.dtype) for name, tensor in TENSORS.items()}


@pytest.mark.parametrize("order", [sorted, lambda names: sorted(names, reverse=True)], ids=["forwards", "backwards"])
def test_the_library_reads_it_whatever_came_first(order: object, tmp_path: Path) -> None:
    with StateFile(tmp_path / "s", _entries()) as file:
        for name in order(TENSORS):  # type: ignore[operator]
            file.put(name, TENSORS[name])
    got = load_file(tmp_path / "s")
    assert got.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name


def test_the_bytes_depend_on_the_tensors_alone(tmp_path: Path) -> None:
    for name, order in (("a", sorted(TENSORS)), ("b", list(TENSORS))):
        with StateFile(tmp_path / name, {key: _entries()[key] for key in order}) as file:
            for key in reversed(order):
                file.put(key, TENSORS[key])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_dtype_that_the_format_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot keep 'z': safetensors has no complex128"):
        StateFile(tmp_path / "s", {"z": Entry((2,), torch.complex128)})
    assert not (tmp_path / "s").exists()
