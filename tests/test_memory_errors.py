"""The forms in which memory runs out. They are real where a limit can be set: see `exhausted`."""

import errno
import json
import subprocess
import sys

import pytest

from ensexport.errors import ArtifactError, ExportError, MemoryLimitError, OutOfMemoryError, StackError
from ensexport.memory_errors import out_of_memory

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v")
ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "1600000000 bytes. Error code 12 (Cannot allocate memory)"
)
ON_GPU = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 139.80 GiB of which 1.50 GiB is free."
THREADS = (
    "/onnxruntime_src/platform/posix/env.cc:327 PosixThread pthread_create failed, error code: 12 error msg: Cannot"
)
BUFFER = "bfc_arena.cc:376 AllocateRawInternal Failed to allocate memory for requested buffer of size 123000000"


OutOfMemoryErrorOfTorch = type("OutOfMemoryError", (RuntimeError,), {})  # torch.OutOfMemoryError is such a class

FORMS = {
    "python": (MemoryError(), None),
    "numpy": (MemoryError("Unable to allocate 2.00 GiB for an array with shape (9,) and data type int8"), 2 * 2**30),
    "torch": (RuntimeError(ALLOCATOR), 1_600_000_000),
    "torch-windows": (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 7000 bytes."), 7000),
    "torch-mmap": (
        RuntimeError("unable to mmap 200001485 bytes from file <a.pt>: Cannot allocate memory (12)"),
        200001485,
    ),
    "torch-gpu": (OutOfMemoryErrorOfTorch(ON_GPU), 20 * 2**30),
    "c++": (RuntimeError("std::bad_alloc"), None),
    "onnxruntime": (RuntimeError(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {BUFFER}"), 123_000_000),
    "onnxruntime-threads": (RuntimeError(THREADS), None),
    "threads": (RuntimeError("can't start new thread"), None),
    "system": (OSError(errno.ENOMEM, "Cannot allocate memory", "a.pt"), None),
    "loader": (ImportError("libtorch_cpu.so: failed to map segment from shared object"), None),
}


@pytest.mark.parametrize(("error", "asked"), FORMS.values(), ids=FORMS)
def test_each_form_is_recognised_and_what_was_asked_for_is_said(error, asked):
    found = out_of_memory(error)
    assert isinstance(found, OutOfMemoryError)
    assert found.exit_code == 7
    assert found.message.startswith("out of memory")
    assert found.hint
    assert found.details.get("asked_bytes") == asked
    json.dumps(found.to_dict())


OTHERS = {
    "value": ValueError("12 bytes"),
    "disk": OSError(errno.ENOSPC, "No space left on device", "e.onnx"),
    "import": ImportError("No module named 'timm'"),
    "ours": StackError("cannot stack 'out of memory' with 'std::bad_alloc'."),
    "system-error": SystemError("error return without exception set"),  # no limit is near here
}


@pytest.mark.parametrize("error", OTHERS.values(), ids=OTHERS)
def test_other_errors_are_left_alone(error):
    assert out_of_memory(error) is None


@LINUX
def test_the_numbers_are_those_of_this_process():
    found = out_of_memory(RuntimeError(ALLOCATOR))
    assert found.message.startswith("out of memory: 1.6 GB more were asked for; this process holds ")
    assert " are left (" in found.message
    assert 10**7 < found.details["resident_bytes"] < 10**12
    assert found.details["available_bytes"] > 0


def test_on_a_gpu_it_is_the_words_of_torch():
    found = out_of_memory(FORMS["torch-gpu"][0])
    assert found.message == f"out of memory on the GPU: {ON_GPU}"
    assert "--provider cpu" in found.hint


def raised(error, cause=None, context=None):
    """The error as it is caught: raised from a cause, or while another was handled."""
    error.__cause__, error.__context__ = cause, context
    error.__suppress_context__ = cause is not None
    return error


def test_what_an_error_was_raised_from_counts():
    inner = raised(ArtifactError("ONNX Runtime cannot load 'e.onnx'."), cause=RuntimeError(THREADS))
    assert isinstance(
        out_of_memory(raised(ExportError("what was written does not run."), cause=inner)), OutOfMemoryError
    )
    assert isinstance(out_of_memory(raised(KeyError("x"), context=MemoryError())), OutOfMemoryError)


def test_a_try_that_took_too_much_does_not_hide_an_error_of_ours():
    assert out_of_memory(raised(StackError("they differ."), context=MemoryError())) is None
    assert out_of_memory(raised(StackError("they differ."), cause=ValueError("a"))) is None


def test_a_refusal_stays_the_refusal_it_was():
    refusal = MemoryLimitError("cannot pack: 3 GB are needed.")
    assert out_of_memory(refusal) is refusal
    assert out_of_memory(raised(RuntimeError("wrapped"), cause=refusal)) is refusal


def test_a_circle_of_causes_ends():
    one, two = ValueError("a"), ValueError("b")
    one.__cause__, two.__cause__ = two, one
    assert out_of_memory(one) is None


PRELUDE = """
import json, resource, sys, threading
from ensexport.memory_errors import out_of_memory
from ensexport.resources import status_bytes
def limit(spare):
    resource.setrlimit(resource.RLIMIT_AS, (status_bytes("VmSize") + spare,) * 2)
def report(error):
    found = out_of_memory(error)
    print(json.dumps(found and found.to_dict()))
"""


def exhausted(body):
    """What is said of the error that `body` runs into, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", PRELUDE + body], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@LINUX
def test_a_real_shortage_names_the_limit_and_how_to_raise_it():
    found = exhausted("limit(50_000_000)\ntry: bytearray(400_000_000)\nexcept MemoryError as error: report(error)")
    assert found["code"] == "E_OUT_OF_MEMORY"
    assert found["limit"] == "address space, ulimit -v"
    assert "(address space, ulimit -v)" in found["message"]
    assert found["hint"] == "Raise the limit (ulimit -v), or lift it (ulimit -v unlimited)."
    assert 0 < found["available_bytes"] <= 60_000_000


@LINUX
def test_threads_that_cannot_be_started_are_a_shortage():
    body = """
ready = threading.Event()
limit(40_000_000)
threading.stack_size(32_000_000)
try:
    for _ in range(9):
        threading.Thread(target=ready.wait).start()
except RuntimeError as error:
    ready.set()
    report(error)
"""
    assert exhausted(body)["code"] == "E_OUT_OF_MEMORY"


@LINUX
def test_an_error_without_a_reason_is_a_shortage_where_a_limit_is_near():
    body = "limit({})\nreport(SystemError('error return without exception set'))"
    assert exhausted(body.format(1_000_000))["code"] == "E_OUT_OF_MEMORY"
    assert exhausted(body.format(4_000_000_000)) is None


@LINUX
def test_an_error_that_nobody_knows_is_a_shortage_where_a_limit_is_near_and_keeps_its_words():
    body = """
from ensexport.memory_errors import unexplained
limit({})
found = unexplained(TypeError("'frame' object is not callable"))
print(json.dumps(found and found.to_dict()))
"""
    found = exhausted(body.format(1_000_000))
    assert found["code"] == "E_OUT_OF_MEMORY"
    assert found["message"].endswith("; what failed for it said TypeError: 'frame' object is not callable.")
    assert exhausted(body.format(4_000_000_000)) is None
