"""Comparing one op's ONNX form with torch on inputs chosen for it: ties, NaN, negative numbers, edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.batching.runs import batched, onnx_run, torchscript_run


class Scaled(nn.Module):
    """`function(x * s, ...)`, with an `s` of each member's own; further inputs stay as they are."""

    def __init__(self, function: Callable[..., object], scale: float) -> None:
        super().__init__()
        self.function = function
        self.s = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor, *others: Tensor) -> object:
        return self.function(x * self.s, *others)


def assert_form(
    function: Callable[..., object],
    inputs: Sequence[str],
    feeds: Sequence[Sequence[Tensor]],
    folder: Path,
    *,
    scales: Sequence[float] = (1.0, -2.0),
    atol: float = 1e-5,
    rtol: float = 1e-5,
    torchscript: bool = True,
) -> None:
    """Run `function` packed, in ONNX Runtime and in TorchScript, and compare with each member in torch."""
    members = [Scaled(function, scale).eval() for scale in scales]
    graph, weights = batched(members, *inputs)
    runs = [onnx_run(graph, weights, folder)]
    if torchscript:
        runs.append(torchscript_run(graph, weights))
    for feed in feeds:
        with torch.no_grad():
            each = [_tuple(member(*feed)) for member in members]
        for run in runs:
            for index, result in enumerate(run(feed)):
                expected = torch.stack([outputs[index] for outputs in each])
                assert result.dtype == expected.dtype, index
                torch.testing.assert_close(
                    result,
                    expected,
                    atol=atol,
                    rtol=rtol,
                    equal_nan=True,
                    msg=lambda text, k=index: f"output {k}: {text}",
                )


def _tuple(outputs: object) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)  # type: ignore[arg-type]
