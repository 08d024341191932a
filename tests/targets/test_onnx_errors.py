"""What cannot be written as ONNX is named, with the user's line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ensexport.errors import ExportError
from ensexport.targets.onnx import onnx_model
from tests.batching.runs import batched
from tests.targets.forms import Scaled


@pytest.mark.parametrize(
    ("function", "message"),
    [
        pytest.param(
            lambda x: torch.special.airy_ai(x) + 1,
            r"it has no form for aten.special_airy_ai.default \(forms.py:\d+ in forward\)",
            id="missing",
        ),
        pytest.param(
            lambda x: torch.special.bessel_j0(x) + 1,
            r"it has no form for aten.special_bessel_j0.default \(forms.py:\d+ in forward\)",
            id="missing-after-decomposition",
        ),
        pytest.param(
            lambda x: torch.linalg.inv(torch.diag_embed(x)) + 1,
            r"aten.linalg_inv_ex.default \(forms.py:\d+ in forward\): .* up to 32 x 32 only, got 40 x 40",
            id="too-large",
        ),
    ],
)
def test_the_op_and_its_line_are_named(function: Callable[[Tensor], Tensor], message: str) -> None:
    members = [Scaled(function, scale).eval() for scale in (1.0, 2.0)]
    graph, _ = batched(members, "x:float32[batch,40]")
    with pytest.raises(ExportError, match=message):
        onnx_model(graph, ["y"])
