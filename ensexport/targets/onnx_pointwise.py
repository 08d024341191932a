"""ONNX forms of elementwise ops that torch's exporter (2.13) lacks, loses or pads: signs, `fmax`, `hypot`, `elu`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ensexport.targets.onnx_values import like, op

aten = torch.ops.aten


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translation table for `torch.onnx.export`."""
    return {
        aten.copysign.Tensor: _copysign,
        aten.copysign.Scalar: _copysign_scalar,
        aten.elu.default: _elu,
        aten.fmax.default: _fmax,
        aten.fmin.default: _fmin,
        aten.hypot.default: _hypot,
        aten.rrelu.default: _rrelu,
        aten.rrelu_with_noise_functional.default: _rrelu_with_noise,
    }


def _copysign(x: Any, sign: Any) -> Any:
    """The sign of -0.0 is seen in its reciprocal."""
    zero = like(0.0, sign)
    is_negative = op.Less(sign, zero)
    if sign.dtype.is_floating_point():
        is_negative = op.Or(is_negative, op.Less(op.Reciprocal(sign), zero))
    size = op.Abs(x if x.dtype.is_floating_point() else op.Cast(x, to=ir.DataType.FLOAT))
    return op.Where(is_negative, op.Neg(size), size)


def _copysign_scalar(x: Any, sign: float) -> Any:
    size = op.Abs(x if x.dtype.is_floating_point() else op.Cast(x, to=ir.DataType.FLOAT))
    return op.Neg(size) if np.signbit(sign) else op.Identity(size)


def _number_of_two(x: Any, y: Any, chosen: Any) -> Any:
    """`chosen`, or the one that is a number where the other is NaN."""
    if not x.dtype.is_floating_point():
        return chosen
    return op.Where(op.IsNaN(x), y, op.Where(op.IsNaN(y), x, chosen))


def _fmax(x: Any, y: Any) -> Any:
    return _number_of_two(x, y, op.Max(x, y))


def _fmin(x: Any, y: Any) -> Any:
    return _number_of_two(x, y, op.Min(x, y))


def _hypot(x: Any, y: Any) -> Any:
    """Scaled by the larger side, whose square may overflow; infinite beside NaN too."""
    is_infinite = op.Or(op.IsInf(x), op.IsInf(y))
    x, y = op.Abs(x), op.Abs(y)
    long, short = op.Max(x, y), op.Min(x, y)
    ratio = op.Div(short, long)
    length = op.Mul(long, op.Sqrt(op.Add(op.Mul(ratio, ratio), like(1.0, ratio))))
    length = op.Where(op.Equal(long, like(0.0, long)), long, length)
    return op.Where(is_infinite, like(np.inf, long), length)


def _elu(x: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    """Torch's exporter multiplies by both scales even if they are 1, and by that of the input above zero too."""
    result = op.Elu(x if input_scale == 1 else op.Mul(x, like(input_scale, x)), alpha=float(alpha))
    if input_scale != 1:
        result = op.Where(op.Greater(x, like(0.0, x)), x, result)
    return result if scale == 1 else op.Mul(result, like(scale, x))


def _rrelu(x: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None) -> Any:
    """Outside of training, the slope is the mean of both bounds."""
    return op.LeakyRelu(x, alpha=(lower + upper) / 2)


def _rrelu_with_noise(
    x: Any,
    noise: Any,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: Any = None,
) -> tuple[Any, Any]:
    return _rrelu(x, lower, upper), noise
