"""What the ONNX forms of ATen ops are written with: the op set, and constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset18

op: Any = opset18  # traced: its stubs type eager arrays, not the graph values seen here


def constant(values: Any) -> Any:
    """An array, in its own dtype."""
    return op.Constant(value=ir.tensor(values))


def ints(*values: int) -> Any:
    """A vector of int64: axes, shapes, starts and ends."""
    return constant(np.array(values, dtype=np.int64))


def like(values: Any, x: Any) -> Any:
    """Numbers in the dtype of `x`."""
    return op.CastLike(constant(np.array(values, dtype=np.float32)), x)
