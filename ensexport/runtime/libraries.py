"""The CUDA libraries of ONNX Runtime's GPU providers: loaded before the first session, named where they are missing.

pip puts them into folders that the system's loader does not search; torch's own wheels bring them. ONNX Runtime looks
there only when asked to, and where one is missing it says so in its log and goes on, on the CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import re
import sys
from pathlib import Path

import onnxruntime as ort

from ensexport.errors import ProviderError

# What the loader says (glibc: "cannot open shared object file"), alone, in ONNX Runtime's log and in its preload_dlls.
_MISSING = re.compile(r"([\w.+-]+\.so[.\d]*): cannot open shared object file")
_LIBRARIES = {"cuda": "libonnxruntime_providers_cuda.so", "tensorrt": "libonnxruntime_providers_tensorrt.so"}
# Library -> the package of NVIDIA's that holds it; `{}` is `-cu12` where CUDA is 12, nothing from 13 on.
_PACKAGES = {
    "libcublas": "nvidia-cublas{}",
    "libcublasLt": "nvidia-cublas{}",
    "libcudart": "nvidia-cuda-runtime{}",
    "libcurand": "nvidia-curand{}",
    "libcufft": "nvidia-cufft{}",
    "libnvrtc": "nvidia-cuda-nvrtc{}",
    "libnvJitLink": "nvidia-nvjitlink{}",
    "libcudnn": "nvidia-cudnn-cu{major}",
    "libnvinfer": "tensorrt-cu{major}",
    "libnvonnxparser": "tensorrt-cu{major}",
}
_DRIVER = "libcuda"


def load_libraries(provider: str) -> None:
    """Load what a provider needs, from the packages that torch's wheels depend on and from the system.

    Args:
        provider: `cuda` or `tensorrt`.

    Raises:
        ProviderError: Libraries are missing; names them and the packages that hold them.
    """
    said = _preloaded()
    if sys.platform != "linux":
        return
    error = _load_error(str(Path(ort.__file__).parent / "capi" / _LIBRARIES[provider]))
    if missing_libraries(error):  # not where it only lacks ONNX Runtime itself, which is loaded with the first session
        # The loader stops at the first that is missing, and the driver comes late.
        missing = missing_libraries("\n".join([error, said, _load_error(f"{_DRIVER}.so.1")]))
        raise missing_error(provider, missing, str(getattr(ort, "cuda_version", "") or "13"))


def _load_error(library: str) -> str:
    """What the loader says of a library; empty if it loads."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return str(error)
    return ""


@functools.cache
def _preloaded() -> str:
    """Ask ONNX Runtime to load CUDA's libraries, once a process; returns what it printed."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
    return text.getvalue()


def missing_libraries(text: str) -> list[str]:
    """Return the libraries that could not be opened, from what a loader or ONNX Runtime said of it."""
    return sorted(set(_MISSING.findall(text)))


def missing_error(provider: str, libraries: list[str], cuda_version: str) -> ProviderError:
    """The error for libraries that are missing.

    Args:
        provider: `cuda` or `tensorrt`.
        libraries: Their file names, such as `libcublasLt.so.13`.
        cuda_version: What ONNX Runtime was built for, such as `13.0`.
    """
    major = cuda_version.partition(".")[0]
    suffix = "" if int(major) >= 13 else f"-cu{major}"
    stems = [library.partition(".so")[0] for library in libraries]
    packages = sorted({_PACKAGES[stem].format(suffix, major=major) for stem in stems if stem in _PACKAGES})
    hints = [f"`pip install {' '.join(packages)}`"] if packages else []
    hints += ["install NVIDIA's driver"] if _DRIVER in stems else []
    unknown = [name for name, stem in zip(libraries, stems, strict=True) if stem not in (*_PACKAGES, _DRIVER)]
    hints += [f"put {', '.join(unknown)} where the loader finds it"] if unknown else []
    hint = ", and ".join(hints)
    return ProviderError(
        f"cannot run on {provider}: ONNX Runtime {ort.__version__} needs CUDA {major}, and "
        f"{', '.join(libraries)} cannot be found.",
        hint=f"{hint[0].upper()}{hint[1:]} (torch built for CUDA brings CUDA's libraries too), or use the CPU.",
        missing=libraries,
    )
