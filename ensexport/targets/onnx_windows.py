"""Convolutions and pools in ONNX, where torch's exporter (2.13) writes something else than torch computes.

Without a bias its 3-D convolution adds zeros of a wrong shape; a pool's divisor is left out; and ONNX Runtime (1.31)
refuses transposed convolutions that torch takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ensexport.targets.onnx_values import ints, like, op

aten = torch.ops.aten


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translation table for `torch.onnx.export`."""
    return {
        **dict.fromkeys((aten.conv1d.default, aten.conv2d.default, aten.conv3d.default), _conv),
        **dict.fromkeys((aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding), _conv),
        aten.conv_transpose1d.default: _conv_transpose,
        aten.conv_transpose2d.input: _conv_transpose,
        aten.conv_transpose3d.input: _conv_transpose,
        aten.avg_pool2d.default: _avg_pool,
        aten.avg_pool3d.default: _avg_pool,
    }


def _each(value: Any, rank: int) -> list[int]:
    """One number for all dims, or one a dim."""
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def _batched(call: Callable[[Any], Any], x: Any, rank: int) -> Any:
    """Give ONNX the batch dim that torch lets one leave out."""
    if len(x.shape) == rank + 2:
        return call(x)
    return op.Squeeze(call(op.Unsqueeze(x, ints(0))), ints(0))


def _conv(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """`x (B, C, ...)`, `weight (O, C/groups, ...)`; no bias is no input, not zeros of a computed shape."""
    kernel = [int(size) for size in weight.shape[2:]]
    rank = len(kernel)
    dilations = _each(dilation, rank)
    if padding == "same":
        total = [(size - 1) * step for size, step in zip(kernel, dilations, strict=True)]
        pads = [*(size // 2 for size in total), *(size - size // 2 for size in total)]
    else:
        pads = _each(0 if padding == "valid" else padding, rank) * 2
    tensors = (weight,) if bias is None else (weight, bias)

    def call(x: Any) -> Any:
        sides = {"strides": _each(stride, rank), "pads": pads, "dilations": dilations, "kernel_shape": kernel}
        return op.Conv(x, *tensors, group=groups, **sides)

    return _batched(call, x, rank)


def _conv_transpose(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """ONNX Runtime wants `output_padding` below the stride; torch only below the stride or the dilation.

    Where it is not, the far end is padded less, or zeros are put behind the input and more is cut off.
    """
    kernel = [int(size) for size in weight.shape[2:]]
    rank = len(kernel)
    strides, begins, extra = _each(stride, rank), _each(padding, rank), _each(output_padding, rank)
    ends, zeros = list(begins), [0] * rank
    for dim in range(rank):
        if extra[dim] >= strides[dim]:
            zeros[dim] = max(0, -((begins[dim] - extra[dim]) // strides[dim]))
            ends[dim] = begins[dim] - extra[dim] + zeros[dim] * strides[dim]
            extra[dim] = 0
    tensors = (weight,) if bias is None else (weight, bias)
    sides = {
        "strides": strides,
        "pads": [*begins, *ends],
        "output_padding": extra,
        "dilations": _each(dilation, rank),
        "kernel_shape": kernel,
    }

    def call(x: Any) -> Any:
        if any(zeros):
            x = op.Pad(x, ints(*[0] * (rank + 4), *zeros), like(0, x))
        return op.ConvTranspose(x, *tensors, group=groups, **sides)

    return _batched(call, x, rank)


def _avg_pool(
    x: Any,
    kernel_size: Sequence[int],
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """With a divisor, averages of whole windows are scaled to their sums over it."""
    rank = max(len(kernel_size), 2)
    kernel, pads = _each(kernel_size, rank), _each(padding, rank)
    strides = _each(stride, rank) if stride else kernel
    options: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    if divisor_override is None:
        options |= {"pads": pads * 2, "ceil_mode": int(ceil_mode), "count_include_pad": int(count_include_pad)}
        return _batched(lambda x: op.AveragePool(x, **options), x, rank)
    ends = list(pads)
    if ceil_mode:
        sizes = list(x.shape)[-rank:]
        ends = [_end_padding(int(s), *rest) for s, *rest in zip(sizes, kernel, strides, pads, strict=True)]
    scale = float(np.prod(kernel)) / divisor_override

    def call(x: Any) -> Any:
        x = op.Pad(x, ints(0, 0, *pads, 0, 0, *ends), like(0, x)) if any(pads + ends) else x
        return op.Mul(op.AveragePool(x, **options), like(scale, x))

    return _batched(call, x, rank)


def _end_padding(size: int, kernel: int, stride: int, padding: int) -> int:
    """How much to pad the end so that whole windows are as many as torch's `ceil_mode` makes."""
    count = -((kernel - size - 2 * padding) // stride) + 1
    if (count - 1) * stride >= size + padding:
        count -= 1  # a window must begin inside the input or the padding before it
    return max(padding, (count - 1) * stride + kernel - size - padding)
