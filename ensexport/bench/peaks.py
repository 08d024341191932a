"""What the machine does at best, measured: products by ONNX Runtime itself, copies by torch."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper

from ensexport.errors import ProviderError
from ensexport.runtime.onnx_runner import make_session, tf32_options
from ensexport.runtime.torch_runner import array_from_tensor

_TRY_S = 0.9  # how long products, and how long copies, are tried
_SIDES = {"cpu": (256, 512, 1024), "cuda": (4096, 8192), "tensorrt": (4096, 8192)}  # of the square factors
_TORCH_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
_COPIES = tuple(2**power for power in range(20, 29))  # bytes read and written: 1 MiB to 256 MiB


@dataclass(frozen=True)
class Peak:
    """What the machine does at best.

    Attributes:
        flops_per_s: Measured on large matrix products, run by ONNX Runtime. A convolution that saves multiplications
            (Winograd) may beat it.
        bytes_per_s: Read and written, from and to memory: far more than the caches hold.
        by_size: `(bytes, bytes per second)` for amounts that caches may hold. A file whose weights stay in the caches
            from call to call does not wait for the memory.
    """

    flops_per_s: float
    bytes_per_s: float
    by_size: tuple[tuple[int, float], ...] = ()

    def bandwidth(self, size_bytes: int) -> float:
        """Bytes per second for this amount of data: the best that was seen with as much or more."""
        return max([self.bytes_per_s, *(speed for size, speed in self.by_size if size >= size_bytes)])


@functools.cache
def measure_peak(provider: str, dtype: str, *, tf32: bool = False) -> Peak:
    """Measure what this machine does at best, in about a second; once a process.

    Large matrix products in ONNX Runtime, on tensors that lie on the device; copies and sums of tensors of several
    sizes in torch, and on the CPU in NumPy, whose one thread waits for no other. Each is repeated; the fastest counts.

    Args:
        provider: `cpu`, `cuda` or `tensorrt`.
        dtype: Of the product: `float32`, `float16`, `bfloat16` or `float64`.
        tf32: Let CUDA compute a product of float32 in TF32.

    Raises:
        ProviderError: The provider is not there.
        ArtifactError: It has no matrix product of this dtype.
    """
    device = "cpu" if provider == "cpu" else "cuda"
    flops_per_s = max(_product_speed(provider, device, dtype, side, tf32=tf32) for side in _SIDES[provider])
    by_size = tuple((size, _copy_speed(size, device)) for size in _COPIES)
    return Peak(flops_per_s, by_size[-1][1], by_size[:-1])


def _product_speed(provider: str, device: str, dtype: str, side: int, *, tf32: bool) -> float:
    factor = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).to(_TORCH_DTYPES[dtype]) / side**0.5
    weight = array_from_tensor(factor)
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    infos = [helper.make_tensor_value_info(name, kind, [side, side]) for name in "xy"]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "product", infos[:1], infos[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="ensexport-peak-") as folder:
        path = Path(folder) / "product.onnx"
        onnx.save(model, path)
        session = make_session(path, provider, options, tf32_options(provider, tf32=tf32))
    _check_cuda(provider, device)
    on_device = factor.to(device)
    binding = session.io_binding()
    binding.bind_input("x", device, 0, kind, [side, side], on_device.data_ptr())
    binding.bind_output("y", device)

    def multiply() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return 2 * side**3 / fastest_s(multiply, _TRY_S / len(_SIDES[provider]))


def _check_cuda(provider: str, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise ProviderError(
            f"cannot measure the peaks of {provider}: torch sees no CUDA device.",
            hint="Install a torch built for CUDA.",
        )


def _copy_speed(size_bytes: int, device: str) -> float:
    """Bytes read and written per second: of copies, or of a sum, which writes nothing, if that is faster."""
    source = torch.ones(size_bytes // 8, device=device)
    target = torch.empty_like(source)
    both = torch.ones(size_bytes // 4, device=device)

    def copy() -> None:
        target.copy_(source)

    def read() -> None:
        both.sum()

    def copy_in_numpy() -> None:
        np.copyto(target.numpy(), source.numpy())

    ways: list[Callable[[], None]] = [copy, read] if device == "cuda" else [copy, read, copy_in_numpy]

    def timed(way: Callable[[], None]) -> None:
        way()
        if device == "cuda":
            torch.cuda.synchronize()

    limit_s = _TRY_S / len(_COPIES) / len(ways)
    return size_bytes / min(fastest_s(functools.partial(timed, way), limit_s) for way in ways)


def fastest_s(run: Callable[[], object], limit_s: float) -> float:
    """Seconds of the fastest of as many runs as fit, after one to warm up; at least three."""
    run()
    times: list[float] = []
    end = time.perf_counter() + limit_s
    while len(times) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)
