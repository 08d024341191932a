"""What may be asked for, by name."""

import importlib

import pytest

from ensexport.bench.alternatives import MAKERS, find_maker
from ensexport.bench.names import (
    BOUND,
    DEFAULT_ALTERNATIVES,
    DESCRIPTIONS,
    check_alternative,
    check_members,
    default_alternatives,
)
from ensexport.errors import UsageError


def test_every_alternative_has_a_maker_and_a_description():
    every = {"packed", "packed-again", *DEFAULT_ALTERNATIVES, *BOUND, "torchscript", "onnx"}
    assert set(MAKERS) == set(DESCRIPTIONS) == every


@pytest.mark.parametrize("suffix", [".onnx", ".ts"])
@pytest.mark.parametrize("kind", sorted(set(MAKERS) - {"torch-compile"}))  # whose import takes seconds
def test_every_maker_is_found(kind, suffix):
    module, _, function = find_maker(kind, f"e{suffix}").partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_device_tensors_and_cuda_graphs_are_for_devices():
    assert set(default_alternatives("e.onnx", "cpu")) == {*DEFAULT_ALTERNATIVES, "torchscript"}
    assert set(default_alternatives("e.onnx", "cuda")) == {*DEFAULT_ALTERNATIVES, "torchscript", *BOUND}
    assert set(default_alternatives("e.ts", "cuda")) == {*DEFAULT_ALTERNATIVES, "onnx", "loop-bound", "loop-cuda-graph"}


def test_an_unknown_alternative_is_refused():
    check_alternative("torchscript", "e.onnx")
    check_alternative("packed-bound", "e.onnx")
    check_alternative("loop-cuda-graph", "e.onnx", "cuda")
    with pytest.raises(UsageError, match=r"unknown alternative 'torchscript': expected one of 'loop', .*'onnx'"):
        check_alternative("torchscript", "e.ts")
    with pytest.raises(UsageError, match="unknown alternative 'packed-bound'"):
        check_alternative("packed-bound", "e.ts")
    with pytest.raises(UsageError, match="cannot run 'loop-cuda-graph' on the CPU"):
        check_alternative("loop-cuda-graph", "e.onnx")


def test_only_members_that_are_there_are_measured():
    check_members([1, 2, 3], 3)
    for wrong in (0, 4):
        with pytest.raises(UsageError, match=f"cannot measure {wrong} members: expected 1 to 3"):
            check_members([1, wrong], 3)
