"""Peaks of this machine, and the floor of a file."""

import time

import pytest

from ensexport.bench import peaks
from ensexport.bench.roofline import Peak, Work, count_work, floor_s, measure_peak
from ensexport.errors import ArtifactError, ProviderError
from ensexport.runtime.onnx_runner import OnnxRunner
from tests.bench.graphs import node, tensor, write


def test_the_floor_is_the_slower_of_arithmetic_and_memory():
    peak = Peak(flops_per_s=100.0, bytes_per_s=10.0)
    assert floor_s(Work(500, 10, 5, 5, "float32"), peak) == 5.0
    assert floor_s(Work(100, 10, 5, 5, "float32"), peak) == 2.0


def test_what_fits_in_a_cache_does_not_wait_for_the_memory():
    peak = Peak(1e9, 10.0, ((100, 80.0), (1000, 90.0), (10_000, 20.0)))
    assert [peak.bandwidth(size) for size in (1, 100, 101, 5000, 20_000)] == [90.0, 90.0, 90.0, 20.0, 10.0]
    assert floor_s(Work(0, 50, 30, 10, "float32"), peak) == 1.0


def test_peaks_are_measured_once_and_quickly():
    begin = time.perf_counter()
    peak = measure_peak("cpu", "float32")
    assert measure_peak("cpu", "float32") is peak
    assert time.perf_counter() - begin < 20  # a second, on a machine that does nothing else
    assert peak.flops_per_s > 1e9
    assert peak.bytes_per_s > 1e8
    assert [size for size, _ in peak.by_size] == [2**power for power in range(20, 28)]


def test_nothing_is_faster_than_its_floor(tmp_path):
    path = write(tmp_path / "m.onnx", [node("MatMul", "x,w", "y")], {"x": [256, 512]}, ["y"], {"w": tensor(512, 512)})
    feed = {"x": tensor(256, 512)}
    runner = OnnxRunner(path)
    fastest = peaks.fastest_s(lambda: runner.run(feed), 0.05)
    # Other work on the machine may have held up the peaks' measurement, so this only sees wrong units.
    assert fastest > 0.3 * floor_s(count_work(path, feed), measure_peak("cpu", "float32"))


def test_what_cannot_be_measured_is_refused(monkeypatch):
    with pytest.raises(ArtifactError, match=r"cannot load 'product\.onnx'.*MatMul"):
        measure_peak("cpu", "bfloat16")
    if "CUDAExecutionProvider" not in peaks.ort.get_available_providers():
        with pytest.raises(ProviderError, match="CUDAExecutionProvider is not available"):
            measure_peak("cuda", "float32")
    monkeypatch.setattr(peaks.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(peaks, "make_session", lambda *_: None)
    with pytest.raises(ProviderError, match="cannot measure the peaks of cuda: torch sees no CUDA device"):
        measure_peak("cuda", "float32")
