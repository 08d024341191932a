"""Looking up and ranking in ONNX against torch, with ties and NaN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.targets.forms import assert_form

X = ("x:float32[batch,4,6]",)
EDGES = torch.tensor([-1.0, 0.0, 0.0, 1.0, 2.0])
NAN = float("nan")
Function = Callable[[Tensor], object]


def rounded(*shape: int) -> Tensor:
    """Halves between -2 and 2: many of them equal."""
    return (torch.randn(shape) * 2).round().clamp(-4, 4) / 2


def feeds(*, nan: bool = False) -> list[tuple[Tensor, ...]]:
    tensors = [rounded(2, 4, 6), torch.randn(1, 4, 6), rounded(3, 4, 6)]
    if nan:
        tensors[0][0, 1, 2] = tensors[0][1, 3, 0] = tensors[0][1, 3, 5] = NAN
        tensors[2][0, :, 1] = NAN
    return [(tensor,) for tensor in tensors]


def rows(x: Tensor) -> Tensor:
    return torch.tensor([0.5, 1.0, 2.0]).expand(x.shape[0], 4, 3).contiguous()


def searched(x: Tensor) -> tuple[Tensor, ...]:
    return (
        torch.searchsorted(EDGES, x),
        torch.searchsorted(EDGES, x, right=True, out_int32=True),
        torch.searchsorted(x.sort(-1)[0], rows(x), side="right"),
        torch.searchsorted(x, rows(x), sorter=x.argsort(-1)),
        torch.searchsorted(x[0, 0].sort()[0], 0.5),
        torch.bucketize(x, EDGES),
        torch.bucketize(x, EDGES, right=True, out_int32=True),
        torch.bucketize(x.to(torch.int64), torch.tensor([-1, 0, 2])),
    )


def ranked(x: Tensor) -> tuple[Tensor, ...]:
    return (
        x.median(1)[0],
        x[:, :3].median(1, keepdim=True)[0],
        x.median(),
        x.nanmedian(-1)[0],
        x.nanmedian(),
        x.kthvalue(2, 1)[0],
        x.kthvalue(6, -1, keepdim=True)[0],
    )


def ordered(x: Tensor) -> tuple[Tensor, ...]:
    return (
        *x.sort(stable=True),
        *x.sort(stable=True, dim=1, descending=True),
        x.sort(1)[0],
        x.sort(descending=True)[0],
        (x > 0).sort(1)[0],
        x.quantile(0.3, dim=1),
        x.nanquantile(0.6, dim=-1),
    )


def places(x: Tensor) -> tuple[Tensor, ...]:
    return (*x.median(1), *x.kthvalue(2, -1), *x.nanmedian(-1, keepdim=True))


def common(x: Tensor) -> tuple[Tensor, ...]:
    """The last place of the most frequent element."""
    return (*x.mode(1), *x.mode(-1), *x.to(torch.int64).mode(1, keepdim=True))


@pytest.mark.parametrize(
    ("function", "data"),
    [
        pytest.param(searched, feeds(), id="searching"),
        pytest.param(lambda x: torch.bucketize(x, EDGES), feeds(nan=True), id="searching-nan"),
        pytest.param(ranked, feeds(nan=True), id="ranking-with-ties-and-nan"),
        pytest.param(ordered, feeds(nan=True), id="sorting-with-ties-and-nan"),
        pytest.param(places, [(torch.randn(size, 4, 6),) for size in (2, 1, 3)], id="places"),
        pytest.param(common, feeds(), id="mode"),
    ],
)
def test_searching_and_ranking(function: Function, data: list[tuple[Tensor, ...]], tmp_path: Path) -> None:
    assert_form(function, X, data, tmp_path)


def test_along_a_dynamic_dim(tmp_path: Path) -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return x.median(1)[0], x.mode(1)[0], x.nanmedian(1)[0], x.sort(1)[0], x.to(torch.int32).median(1)[0]

    sizes = [(2, 5), (1, 4), (3, 1), (2, 7)]
    assert_form(function, ("x:float32[batch,seq,3]",), [(rounded(*size, 3),) for size in sizes], tmp_path)
