"""Ops that work along named dims: the same op, its dims moved up by one behind the member axis.

One rule serves them all: torch's own schema says which arguments are dims and which are tensors. Ops that leave the
folded dim alone run on folded values as they are, which keeps a global average pool free of transposes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload

from ensexport.batching.context import Context
from ensexport.batching.registry import rule
from ensexport.batching.schema import bound, called, results
from ensexport.batching.value import ROWS, Folded, Stacked, Value

aten = torch.ops.aten
_DIM_ARGUMENTS = ("dim", "dims", "dim0", "dim1", "dim2", "source", "destination", "start_dim", "end_dim")

# Ops that touch only the dims they name: reductions, scans, sorting, selecting, splitting.
_ALONG = [
    aten.mean.dim,
    aten.sum.dim_IntList,
    aten.nansum.default,
    aten.amax.default,
    aten.amin.default,
    aten.aminmax.default,
    aten.max.dim,
    aten.min.dim,
    aten.median.dim,
    aten.nanmedian.dim,
    aten.mode.default,
    aten.kthvalue.default,
    aten.argmax.default,
    aten.argmin.default,
    aten.any.dim,
    aten.any.dims,
    aten.all.dim,
    aten.all.dims,
    aten.prod.dim_int,
    aten.var.dim,
    aten.var.correction,
    aten.std.dim,
    aten.std.correction,
    aten.var_mean.dim,
    aten.var_mean.correction,
    aten.std_mean.dim,
    aten.std_mean.correction,
    aten.logsumexp.default,
    aten.linalg_vector_norm.default,
    aten.norm.ScalarOpt_dim,
    aten.softmax.int,
    aten._softmax.default,
    aten.log_softmax.int,
    aten._log_softmax.default,
    aten.cumsum.default,
    aten.cumprod.default,
    aten.cummax.default,
    aten.cummin.default,
    aten.logcumsumexp.default,
    aten.sort.default,
    aten.sort.stable,
    aten.argsort.default,
    aten.argsort.stable,
    aten.topk.default,
    aten.glu.default,
    aten.flip.default,
    aten.roll.default,
    aten.repeat_interleave.self_int,
    aten.index_select.default,
    aten.index_fill.int_Scalar,
    aten.narrow.default,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split.sizes,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.tensor_split.sections,
    aten.unflatten.int,
    aten.squeeze.dims,
]
# These change which dims there are, so a folded dim is not tracked through them.
_RANK_CHANGING = [
    aten.select.int,
    aten.unbind.int,
    aten.squeeze.dim,
    aten.movedim.int,
    aten.diagonal.default,
    aten.diag_embed.default,
    aten.unfold.default,
]
_TAKING_ONE_DIM_OUT = {aten.select.int, aten.unbind.int}
# Several tensors of one rank: all of them get the member axis.
_SEVERAL = [
    aten.gather.default,
    aten.scatter.src,
    aten.scatter.value,
    aten.scatter.reduce,
    aten.scatter_add.default,
    aten.scatter_reduce.two,
    aten.slice_scatter.default,
    aten.take_along_dim.default,
    aten.linalg_cross.default,
]
_LAST_TWO = [aten.triu.default, aten.tril.default]
_NEEDS_SAME_DIM_SIZE = {aten.unflatten.int, aten.squeeze.dims}


def _along(op: OpOverload) -> Any:
    def batched(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> Any:
        arguments = bound(op, (x, *args), kwargs)
        others = [value for value in arguments.values() if isinstance(value, Value) and value is not x]
        if not x.is_per_member or x.rank == 0 or any(value.is_per_member for value in others):
            return None
        first = op._schema.arguments[0].name
        arguments.update({name: ctx.shared(v) for name, v in arguments.items() if isinstance(v, Value) and v is not x})
        dims = _touched(arguments, x.rank)
        if isinstance(x.layout, Folded) and dims is not None and x.layout.dim not in dims and op in _ALONG:
            keeps = arguments.get("keepdim", True)
            gone = 0 if keeps else sum(dim < x.layout.dim for dim in dims)
            if op not in _NEEDS_SAME_DIM_SIZE:
                return results(ctx, called(ctx, op, {**arguments, first: x.node}), Folded(x.layout.dim - gone))
        if x.layout == ROWS and dims == [x.rank - 1] and op in _ALONG and _keeps_rank(ctx, x.rank):
            for name in _DIM_ARGUMENTS:
                if name in arguments:
                    arguments[name] = [2] if isinstance(arguments[name], list | tuple) else 2
            return results(ctx, called(ctx, op, {**arguments, first: x.node}), ROWS)
        splits_fold = isinstance(x.layout, Folded) and dims == [x.layout.dim] and op in _SPLITS
        # `(B, N*C, H)` is split as `(B, N, C, H)`: no transpose.
        axis = x.layout.dim if splits_fold and isinstance(x.layout, Folded) else 0
        arguments[first] = ctx.stacked(x, axis)
        for name in _DIM_ARGUMENTS:
            if name in arguments:
                arguments[name] = _moved(arguments[name], x.rank, axis)
        return results(ctx, called(ctx, op, arguments), Stacked(axis))

    return batched


_SPLITS = {aten.narrow.default, aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default}


def _keeps_rank(ctx: Context, rank: int) -> bool:
    parts = [ctx.result] if isinstance(ctx.result, torch.Tensor) else ctx.result
    return all(part.dim() == rank for part in parts)


def _touched(arguments: dict[str, Any], rank: int) -> list[int] | None:
    """The dims an op works along, or None for all of them."""
    dims = next((arguments[name] for name in ("dim", "dims") if name in arguments), None)
    if dims is None or dims == []:
        return None
    return [dim % rank for dim in dims] if isinstance(dims, list | tuple) else [dims % rank]


def _moved(dims: Any, rank: int, axis: int) -> Any:
    if dims is None or dims == []:
        return [dim for dim in range(rank + 1) if dim != axis]
    if isinstance(dims, list | tuple):
        return [_moved(dim, rank, axis) for dim in dims]
    dim = dims % rank
    return dim + 1 if dim >= axis else dim


def _rank_changing(op: OpOverload) -> Any:
    def batched(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> Any:
        if x.rank == 0:
            return None
        arguments = bound(op, (x, *args), kwargs)
        if isinstance(x.layout, Folded) and op in _TAKING_ONE_DIM_OUT:
            dim = arguments["dim"] % x.rank
            if dim != x.layout.dim:
                arguments[op._schema.arguments[0].name] = x.node
                return results(ctx, called(ctx, op, arguments), Folded(x.layout.dim - (dim < x.layout.dim)))
        arguments[op._schema.arguments[0].name] = ctx.stacked(x)
        rank = x.rank + 1 if op is aten.diag_embed.default else x.rank
        for name in (*_DIM_ARGUMENTS, "dimension"):
            if name in arguments:
                arguments[name] = _moved(arguments[name], rank, 0)
        return results(ctx, called(ctx, op, arguments), Stacked(0))

    return batched


def _several(op: OpOverload) -> Any:
    def batched(ctx: Context, *args: Any, **kwargs: Any) -> Any:
        arguments = bound(op, args, kwargs)
        rank = ctx.result.dim()
        values = {name: value for name, value in arguments.items() if isinstance(value, Value)}
        if rank == 0 or arguments.get("dim", 0) is None or any(value.rank != rank for value in values.values()):
            return None
        arguments.update({name: ctx.stacked(value) for name, value in values.items()})
        arguments["dim"] = _moved(arguments["dim"], rank, 0)
        return ctx.value(called(ctx, op, arguments), Stacked(0))

    return batched


def _last_two(op: OpOverload) -> Any:
    def batched(ctx: Context, x: Value, *args: Any) -> Any:
        return ctx.value(ctx.call(op, ctx.stacked(x), *args), Stacked(0))

    return batched


for _ops, _make in [(_ALONG, _along), (_RANK_CHANGING, _rank_changing), (_SEVERAL, _several), (_LAST_TWO, _last_two)]:
    for _op in _ops:
        rule(_op)(_make(_op))

_WHOLE = {
    aten.sum.default: aten.sum.dim_IntList,
    aten.mean.default: aten.mean.dim,
    aten.max.default: aten.amax.default,
    aten.min.default: aten.amin.default,
    aten.any.default: aten.any.dim,
    aten.all.default: aten.all.dim,
    aten.prod.default: aten.prod.dim_int,
}


def _whole(over_dim: OpOverload) -> Any:
    def batched(ctx: Context, x: Value, **kwargs: Any) -> Value | None:
        if x.rank == 0:
            return None
        flat = ctx.call(aten.flatten.using_ints, ctx.stacked(x), 1, x.rank)
        takes_list = "int" in str(over_dim._schema.arguments[1].type) and "List" in str(
            over_dim._schema.arguments[1].type
        )
        return ctx.value(ctx.call(over_dim, flat, [1] if takes_list else 1, **kwargs), Stacked(0))

    return batched


for _op, _over_dim in _WHOLE.items():
    rule(_op)(_whole(_over_dim))


@rule(aten.index.Tensor)
def index(ctx: Context, x: Value, indices: list[Value | None]) -> Value | None:
    """Advanced indexing with the same indices for all members, or with indices of their own."""
    given = [dim for dim, value in enumerate(indices) if value is not None]
    per_member = [dim for dim in given if indices[dim].is_per_member]  # type: ignore[union-attr]
    is_adjacent = given == list(range(given[0], given[-1] + 1))
    if not per_member:
        nodes = [None if value is None else ctx.shared(value) for value in indices]
        node = ctx.call(aten.index.Tensor, ctx.stacked(x), [None, *nodes])
        # Indices with a gap put their result in front, before the member axis.
        front = ctx.result.dim() - (x.rank - len(given))
        return ctx.value(node, Stacked(0 if is_adjacent else front))
    chosen = [value for value in indices if value is not None]
    if not x.is_per_member and len(given) == 1:
        nodes = [None if value is None else ctx.stacked(value) for value in indices]
        return ctx.value(ctx.call(aten.index.Tensor, ctx.shared(x), nodes), Stacked(given[0]))
    if given[0] != 0 or not is_adjacent or any(value.member.dtype is torch.bool for value in chosen):
        return None
    # Each member's number stands beside its own indices.
    rank = max(value.rank for value in chosen)
    numbers = ctx.call(aten.arange.default, ctx.n_members, device=x.member.device)
    numbers = ctx.call(aten.reshape.default, numbers, [-1] + [1] * rank)
    nodes = [numbers, *(ctx.broadcast(value, rank) for value in chosen)]
    return ctx.value(ctx.call(aten.index.Tensor, ctx.stacked(x), nodes), Stacked(0))
