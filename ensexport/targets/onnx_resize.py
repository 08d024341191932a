"""Resizing with `antialias=True` in ONNX, as torch computes it.

ONNX Runtime (1.31) weighs the pixels of an antialiased `Resize` otherwise than torch, up to another picture where
corners are aligned. Where the sizes are known, each axis is one product with a constant matrix of torch's own weights.

Source: `_compute_indices_min_size_weights_aa` of aten/src/ATen/native/cpu/UpSampleKernel.cpp, torch 2.13.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnxscript.function_libs.torch_lib.ops import nn as torchlib

from ensexport.targets.onnx_values import like, op

aten = torch.ops.aten
_TAPS = {"linear": 2, "cubic": 4}


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translation table for `torch.onnx.export`."""
    return {
        aten._upsample_bilinear2d_aa.default: _form("linear", torchlib.aten__upsample_bilinear2d_aa),
        aten._upsample_bicubic2d_aa.default: _form("cubic", torchlib.aten__upsample_bicubic2d_aa),
    }


def _form(kind: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """The form of one filter; `plain` is the exporter's own, for sizes that are not known."""

    def antialiased(
        x: Any,
        output_size: Sequence[Any],
        align_corners: bool,
        scales_h: float | None = None,
        scales_w: float | None = None,
    ) -> Any:
        if not _is_known(x, output_size):
            return plain(x, output_size, align_corners, scales_h, scales_w)
        return _resized(kind, x, output_size, align_corners, (scales_h, scales_w))

    return antialiased


def _is_known(x: Any, output_size: Sequence[Any]) -> bool:
    return isinstance(output_size, Sequence) and all(isinstance(size, int) for size in [*x.shape[-2:], *output_size])


def _resized(
    kind: str, x: Any, output_size: Sequence[int], align_corners: bool, scales: tuple[float | None, float | None]
) -> Any:
    """`x (B, C, H, W)` -> `(B, C, *output_size)`."""
    height, width = (int(size) for size in x.shape[-2:])
    rows = _weights(kind, height, output_size[0], align_corners, scales[0])
    columns = _weights(kind, width, output_size[1], align_corners, scales[1]).T
    wide = op.MatMul(x, like(np.ascontiguousarray(columns), x))
    return op.MatMul(like(rows, x), wide)


def _weights(kind: str, size: int, wanted: int, align_corners: bool, factor: float | None) -> Any:
    """`(wanted, size)`: what each pixel gives to each new one."""
    if align_corners:
        scale = (size - 1) / (wanted - 1) if wanted > 1 else 0.0
    else:
        scale = 1 / factor if factor is not None and factor > 0 else size / wanted
    stretch = max(scale, 1.0)
    support = _TAPS[kind] / 2 * stretch
    matrix = np.zeros((wanted, size), dtype=np.float64)
    for row in range(wanted):
        center = scale * (row + 0.5)
        first, end = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), size)
        places = np.arange(first, end)
        values = _filter(kind, np.abs((places - center + 0.5) / stretch))
        matrix[row, first:end] = values / (values.sum() or 1.0)
    return matrix.astype(np.float32)


def _filter(kind: str, distance: Any) -> Any:
    if kind == "linear":
        return np.maximum(1 - distance, 0)
    a = -0.5
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * a
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
