"""Antialiased resizing in ONNX against torch: smaller, larger, by factors, corners aligned or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.targets.forms import assert_form


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialiased_resizing(mode: str, tmp_path: Path) -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        each = []
        for align in (False, True):
            for options in ({"size": (3, 4)}, {"size": (9, 11)}, {"size": (1, 20)}, {"scale_factor": (0.45, 1.7)}):
                each.append(F.interpolate(x, mode=mode, align_corners=align, antialias=True, **options))
        return tuple(each)

    assert_form(
        function, ("x:float32[batch,3,6,8]",), [(torch.randn(2, 3, 6, 8),), (torch.randn(1, 3, 6, 8),)], tmp_path
    )
