"""What is missing for a GPU provider is named, with the package that holds it."""

import ctypes

import onnxruntime as ort
import pytest

from ensexport.errors import ProviderError
from ensexport.runtime.libraries import load_libraries, missing_error, missing_libraries
from ensexport.runtime.onnx_runner import check_provider

# As ONNX Runtime 1.31.1 logged and printed it on a machine without CUDA.
LOG = (
    "[E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] provider_bridge_ort.cc:2043 "
    "onnxruntime::Provider& onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library "
    "/venv/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object "
    "file: No such file or directory"
)
PRELOAD = """\
Failed to load libcublasLt.so.13: libcublasLt.so.13: cannot open shared object file: No such file or directory
Failed to load libcublas.so.13: libcublas.so.13: cannot open shared object file: No such file or directory
Failed to load libcurand.so.10: libcurand.so.10: cannot open shared object file: No such file or directory
Please follow https://onnxruntime.ai/docs/install/#cuda-and-cudnn to install CUDA.
"""


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (LOG, ["libcublasLt.so.13"]),
        (PRELOAD, ["libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10"]),
        ("libcuda.so.1: cannot open shared object file: No such file or directory", ["libcuda.so.1"]),
        ("libonnxruntime_providers_cuda.so: undefined symbol: Provider_GetHost", []),
        ("", []),
    ],
    ids=["log", "preload", "driver", "symbol", "nothing"],
)
def test_the_missing_are_found_in_what_is_said(text, names):
    assert missing_libraries(text) == names


@pytest.mark.parametrize(
    ("libraries", "cuda_version", "hint"),
    [
        (["libcublasLt.so.13", "libcurand.so.10"], "13.0", "pip install nvidia-cublas nvidia-curand`"),
        (["libcublas.so.12", "libcudnn.so.9"], "12.8", "pip install nvidia-cublas-cu12 nvidia-cudnn-cu12`"),
        (["libnvinfer.so.10"], "13.0", "pip install tensorrt-cu13`"),
        (["libcuda.so.1"], "13.0", "Install NVIDIA's driver"),
        (["libcublas.so.13", "libcuda.so.1"], "13.0", "pip install nvidia-cublas`, and install NVIDIA's driver"),
        (["libmystery.so.1"], "13.0", "Put libmystery.so.1 where the loader finds it"),
    ],
    ids=["cuda-13", "cuda-12", "tensorrt", "driver", "both", "unknown"],
)  # fmt: skip
def test_each_missing_library_is_named_with_what_brings_it(libraries, cuda_version, hint):
    error = missing_error("cuda", libraries, cuda_version)
    assert all(name in error.message for name in libraries)
    assert f"needs CUDA {cuda_version[:2]}" in error.message
    assert hint in error.hint
    assert (error.exit_code, error.details) == (7, {"missing": libraries})


def can_load(name):
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


@pytest.mark.skipif(can_load("libcuda.so.1"), reason="there is a driver")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_machine_without_cuda(provider, capfd):
    if f"{provider}executionprovider" not in {name.lower() for name in ort.get_available_providers()}:
        pytest.skip("this ONNX Runtime is built without it")
    for check in (load_libraries, check_provider):
        with pytest.raises(
            ProviderError, match=rf"cannot run on {provider}: .* lib\w+\.so\.\d+ cannot be found"
        ) as caught:
            check(provider)
        assert "libcuda.so.1" in caught.value.details["missing"]
        assert "NVIDIA's driver" in caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_the_cpu_is_always_there():
    check_provider("cpu")
