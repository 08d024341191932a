"""Group norm in ONNX: an `InstanceNormalization` over the groups, then scale and shift of each channel.

From opset 21 on torch's exporter writes `GroupNormalization`, which ONNX Runtime has no kernel for: it expands to 27
nodes. Below, its form computes the scale of the groups, and the shape to go back to, in every call.

Source: ONNX Runtime 1.31's optimised graphs; https://onnx.ai/onnx/operators/onnx__GroupNormalization.html.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ensexport.targets.onnx_values import ints, like, op


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translation table for `torch.onnx.export`."""
    return {torch.ops.aten.group_norm.default: _group_norm}


def _group_norm(
    x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Any:
    """`x (B, C, ...)`, the norm taken over `(B, G, C/G * ...)`; `weight (C,)`, `bias (C,)`."""
    ones, zeros = (like(np.full(num_groups, value), x) for value in (1.0, 0.0))
    groups = op.Reshape(x, ints(0, num_groups, -1))
    y = op.InstanceNormalization(groups, ones, zeros, epsilon=eps)
    sizes = [size if isinstance(size, int) else -1 for size in x.shape[1:]]
    y = op.Reshape(y, ints(0, *sizes) if sizes.count(-1) <= 1 else op.Shape(x))
    per_channel = ints(-1, *[1] * (len(sizes) - 1))
    if weight is not None:
        y = op.Mul(y, op.Reshape(weight, per_channel))
    if bias is not None:
        y = op.Add(y, op.Reshape(bias, per_channel))
    return y
