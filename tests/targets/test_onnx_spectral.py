"""Spectra in ONNX against torch: complex weights are written as pairs of real numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.batching.runs import assert_equals_loop, batched, capture, onnx_run, torchscript_run


class Filter(nn.Module):
    """A learned filter of the spectrum, as in GFNet."""

    def __init__(self, is_pair: bool) -> None:
        super().__init__()
        weight = torch.randn(3, 6, 5, 2)
        self.weight = nn.Parameter(weight if is_pair else torch.view_as_complex(weight))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight)
        return torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho") * weight, s=(6, 8), norm="ortho")


@pytest.mark.parametrize("is_pair", [True, False], ids=["pairs", "complex"])
def test_learned_filter_of_the_spectrum(is_pair: bool, tmp_path: Path) -> None:
    members = [Filter(is_pair).eval() for _ in range(2)]
    graph, weights = batched(members, "x:float32[batch,3,6,8]")
    _, example = capture(members[0], "x:float32[batch,3,6,8]")
    runs = [onnx_run(graph, weights, tmp_path), torchscript_run(graph, weights)]
    assert_equals_loop(runs, members, graph, example, batches=(1, 3))


class Spectrogram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.register_buffer("window", torch.hann_window(8))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        spectrum = torch.stft(x * self.gain, 8, 4, window=self.window, return_complex=True)
        return spectrum.abs(), torch.view_as_real(spectrum), torch.fft.rfft(x * self.gain, norm="ortho").imag


def test_spectrogram_of_a_signal_of_any_length(tmp_path: Path) -> None:
    members = [Spectrogram().eval() for _ in range(2)]
    with torch.no_grad():
        members[1].gain.fill_(-2.5)
    graph, weights = batched(members, "x:float32[batch,time]")
    _, example = capture(members[0], "x:float32[batch,time]")
    runs = [onnx_run(graph, weights, tmp_path), torchscript_run(graph, weights)]
    assert_equals_loop(runs, members, graph, example, batches=(1, 2))
