"""Ops that other ops can say: each written in torch for one member, or by torch's own decomposition."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ensexport.batching.compose import composed, decomposed
from ensexport.batching.context import Context
from ensexport.batching.registry import rule
from ensexport.batching.value import Stacked, Value

aten = torch.ops.aten

decomposed(
    aten.affine_grid_generator.default,
    aten.atleast_1d.default,
    aten.atleast_2d.default,
    aten.atleast_3d.default,
    aten.broadcast_tensors.default,
    aten.column_stack.default,
    aten.cross.default,
    aten.dstack.default,
    aten.hstack.default,
    aten.huber_loss.default,
    aten.kron.default,
    aten.linalg_matrix_norm.default,
    aten.linalg_matrix_norm.str_ord,
    aten.linalg_norm.default,
    aten.mse_loss.default,
    aten.l1_loss.default,
    aten.pairwise_distance.default,
    aten.reshape_as.default,
    aten.rot90.default,
    aten.smooth_l1_loss.default,
    aten.swapaxes.default,
    aten.swapdims.default,
    aten.tensor_split.indices,
    aten.view_as.default,
    aten.vstack.default,
)


@composed(aten.one_hot.default)
def one_hot(ids: Tensor, num_classes: int = -1) -> Tensor:
    """`ids (...)` -> `(..., num_classes)`."""
    return (ids.unsqueeze(-1) == torch.arange(num_classes, device=ids.device)).to(torch.int64)


@composed(aten.outer.default, aten.ger.default)
def outer(x: Tensor, y: Tensor) -> Tensor:
    """`x (M,)`, `y (K,)` -> `(M, K)`."""
    return x.unsqueeze(1) * y


@composed(aten.meshgrid.default, aten.meshgrid.indexing)
def meshgrid(lines: list[Tensor], indexing: str = "ij") -> tuple[Tensor, ...]:
    """Each of the lines `(M,)`, `(K,)`, ... over the grid `(M, K, ...)`; `xy` swaps the first two dims."""
    order = list(range(len(lines)))
    if indexing == "xy":
        order[:2] = order[:2][::-1]
    lines = [line.reshape(-1) for line in lines]
    sizes = [lines[place].shape[0] for place in order]
    views = [line[(..., *[None] * (len(order) - 1 - order.index(place)))] for place, line in enumerate(lines)]
    return tuple(view.expand(sizes) for view in views)


@composed(aten.mv.default)
def mv(x: Tensor, vector: Tensor) -> Tensor:
    """`x (M, K)`, `vector (K,)`."""
    return torch.matmul(x, vector)


@composed(aten.dot.default, aten.vdot.default)
def dot(x: Tensor, y: Tensor) -> Tensor:
    """Two vectors."""
    return (x * y).sum()


@composed(aten.bilinear.default)
def bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x (..., I)`, `y (..., J)`, `weight (O, I, J)`: one linear layer to `(..., O, J)`, then a matrix by `y`."""
    columns, _, inner = weight.shape
    wide = F.linear(x, weight.transpose(1, 2).flatten(0, 1))
    product = torch.matmul(torch.unflatten(wide, -1, (columns, inner)), y.unsqueeze(-1)).squeeze(-1)
    return product if bias is None else product + bias


@composed(aten.tensordot.default)
def tensordot(x: Tensor, y: Tensor, dims_x: list[int], dims_y: list[int]) -> Tensor:
    """Sum over several dims of both sides; what is left of `x` comes first."""
    dims_x, dims_y = [dim % x.dim() for dim in dims_x], [dim % y.dim() for dim in dims_y]
    free_x = [dim for dim in range(x.dim()) if dim not in dims_x]
    free_y = [dim for dim in range(y.dim()) if dim not in dims_y]
    sizes = [*(x.shape[dim] for dim in free_x), *(y.shape[dim] for dim in free_y)]
    rows = x.permute(free_x + dims_x).flatten(len(free_x)) if len(dims_x) > 1 else x.permute(free_x + dims_x)
    columns = y.permute(dims_y + free_y)
    columns = columns.flatten(0, len(dims_y) - 1) if len(dims_y) > 1 else columns
    columns = columns.flatten(1) if len(free_y) > 1 else columns
    return torch.matmul(rows, columns).reshape(sizes)


@composed(aten.cosine_similarity.default)
def cosine_similarity(x: Tensor, y: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Along `dim` of both sides, broadcast."""
    rank = max(x.dim(), y.dim())
    dim = dim % rank - rank
    x_unit = x / torch.linalg.vector_norm(x, 2, dim, keepdim=True).clamp_min(eps)
    y_unit = y / torch.linalg.vector_norm(y, 2, dim, keepdim=True).clamp_min(eps)
    return torch.sum(x_unit * y_unit, dim)


@composed(aten.fill.Tensor)
def fill(x: Tensor, value: Tensor) -> Tensor:
    """`value ()` in the shape and dtype of `x`."""
    return value.to(x.dtype).expand(x.shape)


@composed(aten.special_expit.default)
def expit(x: Tensor) -> Tensor:
    """The sigmoid under its other name."""
    return x.sigmoid()


@rule(aten.cdist.default)
def cdist(ctx: Context, x: Value, y: Value, p: float = 2.0, compute_mode: int | None = None) -> Value:
    """`x (..., P, K)`, `y (..., R, K)`: members are one more leading dim, and leading dims broadcast."""
    rank = max(x.rank, y.rank)
    left, right = ctx.broadcast(x, rank), ctx.broadcast(y, rank)
    return ctx.value(ctx.call(aten.cdist.default, left, right, p, compute_mode), Stacked(0))
