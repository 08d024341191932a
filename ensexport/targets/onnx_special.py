"""ONNX forms of special functions: `lgamma`, `digamma`, `erfinv`, `ndtri`.

torch's exporter (2.13) has none. They are computed in float64, so that a float32 result is good to its last digits.

Source: lgamma is Lanczos' formula with g = 7 and 9 terms (Godfrey, http://www.numericana.com/answer/info/godfrey.htm);
digamma the asymptotic series of Abramowitz and Stegun 6.3.18; erfinv is Wichura's AS 241 (PPND16, Applied Statistics
37, 1988), of which the quantile of the normal distribution is a scaled form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ensexport.targets.onnx_values import constant, op

aten = torch.ops.aten

_LANCZOS = (
    0.99999999999980993,
    676.5203681218851,
    -1259.1392167224028,
    771.32342877765313,
    -176.61502916214059,
    12.507343278686905,
    -0.13857109526572012,
    9.9843695780195716e-6,
    1.5056327351493116e-7,
)
# B_2n / 2n of the asymptotic series of digamma, in powers of 1 / x^2.
_BERNOULLI = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12)

# PPND16: numerator and denominator, highest power first, in the centre, for r <= 5 and beyond.
_CENTRE = (
    (
        2.5090809287301226727e3,
        3.3430575583588128105e4,
        6.7265770927008700853e4,
        4.5921953931549871457e4,
        1.3731693765509461125e4,
        1.9715909503065514427e3,
        1.3314166789178437745e2,
        3.3871328727963666080e0,
    ),
    (
        5.2264952788528545610e3,
        2.8729085735721942674e4,
        3.9307895800092710610e4,
        2.1213794301586595867e4,
        5.3941960214247511077e3,
        6.8718700749205790830e2,
        4.2313330701600911252e1,
        1.0,
    ),
)
_MIDDLE = (
    (
        7.74545014278341407640e-4,
        2.27238449892691845833e-2,
        2.41780725177450611770e-1,
        1.27045825245236838258e0,
        3.64784832476320460504e0,
        5.76949722146069140550e0,
        4.63033784615654529590e0,
        1.42343711074968357734e0,
    ),
    (
        1.05075007164441684324e-9,
        5.47593808499534494600e-4,
        1.51986665636164571966e-2,
        1.48103976427480074590e-1,
        6.89767334985100004550e-1,
        1.67638483018380384940e0,
        2.05319162663775882187e0,
        1.0,
    ),
)
_FAR = (
    (
        2.01033439929228813265e-7,
        2.71155556874348757815e-5,
        1.24266094738807843860e-3,
        2.65321895265761230930e-2,
        2.96560571828504891230e-1,
        1.78482653991729133580e0,
        5.46378491116411436990e0,
        6.65790464350110377720e0,
    ),
    (
        2.04426310338993978564e-15,
        1.42151175831644588870e-7,
        1.84631831751005468180e-5,
        7.86869131145613259100e-4,
        1.48753612908506148525e-2,
        1.36929880922735805310e-1,
        5.99832206555887937690e-1,
        1.0,
    ),
)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translation table for `torch.onnx.export`."""
    return {
        aten.lgamma.default: _in_float64(_lgamma),
        aten.digamma.default: _in_float64(_digamma),
        aten.special_digamma.default: _in_float64(_digamma),
        aten.erfinv.default: _in_float64(_erfinv),
        aten.special_ndtri.default: _in_float64(_ndtri),
    }


def _in_float64(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Compute in float64; integers become float32, as in torch."""

    def translated(x: Any) -> Any:
        result = function(op.Cast(x, to=ir.DataType.DOUBLE))
        return op.CastLike(result, x) if x.dtype.is_floating_point() else op.Cast(result, to=ir.DataType.FLOAT)

    return translated


def _number(value: float) -> Any:
    return constant(np.array(value, dtype=np.float64))


def _sum(terms: Sequence[Any]) -> Any:
    total = terms[0]
    for term in terms[1:]:
        total = op.Add(total, term)
    return total


def _polynomial(coefficients: Sequence[float], x: Any) -> Any:
    """Horner's scheme, highest power first."""
    value = _number(coefficients[0])
    for coefficient in coefficients[1:]:
        value = op.Add(op.Mul(value, x), _number(coefficient))
    return value


def _ratio(numerator_and_denominator: Sequence[Sequence[float]], x: Any) -> Any:
    numerator, denominator = numerator_and_denominator
    return op.Div(_polynomial(numerator, x), _polynomial(denominator, x))


def _lgamma(x: Any) -> Any:
    """Left of 1/2 by reflection; infinite at the poles and at both ends."""
    one, half = _number(1.0), _number(0.5)
    is_left = op.Less(x, half)
    z = op.Sub(op.Where(is_left, op.Sub(one, x), x), one)
    t = op.Add(z, _number(7.5))
    series = _sum(
        [_number(_LANCZOS[0])]
        + [op.Div(_number(term), op.Add(z, _number(float(k)))) for k, term in enumerate(_LANCZOS) if k]
    )
    right = op.Sub(op.Mul(op.Add(z, half), op.Log(t)), t)
    right = op.Add(op.Add(right, op.Log(series)), _number(0.5 * math.log(2 * math.pi)))
    sine = op.Sin(op.Mul(op.Sub(x, op.Floor(x)), _number(math.pi)))
    left = op.Sub(op.Sub(_number(math.log(math.pi)), op.Log(op.Abs(sine))), right)
    result = op.Where(is_left, left, right)
    return op.Where(op.IsInf(x), _number(math.inf), result)


def _digamma(x: Any) -> Any:
    """Ten steps to the right, where the series is exact; left of zero by reflection."""
    zero, one = _number(0.0), _number(1.0)
    is_left = op.Less(x, zero)
    right = op.Where(is_left, op.Sub(one, x), x)
    steps = _sum([op.Reciprocal(op.Add(right, _number(float(k)))) for k in range(10)])
    far = op.Add(right, _number(10.0))
    inverse = op.Reciprocal(op.Mul(far, far))
    series = op.Mul(_polynomial(_BERNOULLI[::-1], inverse), inverse)
    value = op.Sub(op.Sub(op.Sub(op.Log(far), op.Div(_number(0.5), far)), series), steps)
    angle = op.Mul(op.Sub(x, op.Floor(x)), _number(math.pi))
    cotangent = op.Div(op.Cos(angle), op.Sin(angle))  # ONNX Runtime has no Tan in float64
    value = op.Where(is_left, op.Sub(value, op.Mul(_number(math.pi), cotangent)), value)
    is_pole = op.And(is_left, op.Equal(x, op.Floor(x)))
    return op.Where(is_pole, _number(math.nan), value)


def _quantile(q: Any, tail: Any) -> Any:
    """The normal distribution's quantile of `q + 1/2`; `tail` is the smaller of that and what is left of 1."""
    central = op.Mul(q, _ratio(_CENTRE, op.Sub(_number(0.180625), op.Mul(q, q))))
    r = op.Sqrt(op.Neg(op.Log(tail)))
    middle, far = _ratio(_MIDDLE, op.Sub(r, _number(1.6))), _ratio(_FAR, op.Sub(r, _number(5.0)))
    size = op.Where(op.LessOrEqual(r, _number(5.0)), middle, far)
    size = op.Where(op.Equal(tail, _number(0.0)), _number(math.inf), size)
    is_central = op.LessOrEqual(op.Abs(q), _number(0.425))
    return op.Where(is_central, central, op.Mul(op.Sign(q), size))


def _erfinv(x: Any) -> Any:
    """Infinite at -1 and 1, NaN beyond."""
    half = _number(0.5)
    tail = op.Mul(op.Sub(_number(1.0), op.Abs(x)), half)
    return op.Mul(_quantile(op.Mul(x, half), tail), _number(math.sqrt(0.5)))


def _ndtri(x: Any) -> Any:
    """Infinite at 0 and 1, NaN beyond."""
    return _quantile(op.Sub(x, _number(0.5)), op.Min(x, op.Sub(_number(1.0), x)))
