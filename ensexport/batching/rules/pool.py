"""Pooling: every channel on its own, so members stay side by side in the channels."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload

from ensexport.batching.context import Context
from ensexport.batching.registry import rule
from ensexport.batching.schema import results
from ensexport.batching.value import Folded, Value

aten = torch.ops.aten


def _pool(op: OpOverload, spatial: int) -> Any:
    def batched(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> Any:
        dim = x.rank - spatial - 1
        return results(ctx, ctx.call(op, ctx.folded(x, dim), *args, **kwargs), Folded(dim))

    return batched


for _op, _spatial in [
    (aten.max_pool1d.default, 1),
    (aten.max_pool2d.default, 2),
    (aten.max_pool3d.default, 3),
    (aten.max_pool1d_with_indices.default, 1),
    (aten.max_pool2d_with_indices.default, 2),
    (aten.max_pool3d_with_indices.default, 3),
    (aten.avg_pool1d.default, 1),
    (aten.avg_pool2d.default, 2),
    (aten.avg_pool3d.default, 3),
    (aten.adaptive_avg_pool1d.default, 1),
    (aten.adaptive_avg_pool2d.default, 2),
    (aten.adaptive_avg_pool3d.default, 3),
    (aten._adaptive_avg_pool2d.default, 2),
    (aten._adaptive_avg_pool3d.default, 3),
    (aten.adaptive_max_pool1d.default, 1),
    (aten.adaptive_max_pool2d.default, 2),
    (aten.adaptive_max_pool3d.default, 3),
]:
    rule(_op)(_pool(_op, _spatial))
