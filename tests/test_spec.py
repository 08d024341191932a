import json
import math

import pytest

from ensexport.errors import InputSpecError, UsageError
from ensexport.spec import (
    DTYPES,
    Check,
    TensorSpec,
    Tolerance,
    ValidationReport,
    artifact_format,
    batch_dim,
    dim_names,
    json_number,
    parse_inputs,
)

GOOD = {
    "dynamic batch": ("x:float32[batch,1,28,28]", TensorSpec("x", "float32", ("batch", 1, 28, 28))),
    "spaces": ("  x : int64 [ b , 3 ]  ", TensorSpec("x", "int64", ("b", 3))),
    "scalar": ("t:bool[]", TensorSpec("t", "bool", ())),
    "one dim": ("ids:int64[seq]", TensorSpec("ids", "int64", ("seq",))),
    "underscores": ("_x1:uint8[_n]", TensorSpec("_x1", "uint8", ("_n",))),
    "equal names": ("x:float16[n,n]", TensorSpec("x", "float16", ("n", "n"))),
}
BAD = {
    "nothing": ("", "cannot read input '': expected NAME:DTYPE"),
    "no dims": ("x:float32", "expected NAME:DTYPE"),
    "no dtype": ("x[3]", "expected NAME:DTYPE"),
    "no name": (":float32[3]", "expected NAME:DTYPE"),
    "text after it": ("x:float32[3] y", "expected NAME:DTYPE"),
    "nested brackets": ("x:float32[[3]]", "expected NAME:DTYPE"),
    "a space in the name": ("x y:float32[3]", "expected NAME:DTYPE"),
    "name begins with a digit": ("1x:float32[3]", "'1x' is no name"),
    "unknown dtype": ("x:float33[3]", "unknown dtype 'float33'"),
    "numpy dtype": ("x:f4[3]", "unknown dtype 'f4'"),
    "size 0": ("x:float32[0]", "dimension 0 is neither a positive integer nor a name"),
    "size -1": ("x:float32[-1]", "dimension '-1' is neither"),
    "size 1.5": ("x:float32[1.5]", "dimension '1.5' is neither"),
    "empty dim": ("x:float32[b,]", "dimension '' is neither"),
    "expression": ("x:float32[2*b]", "dimension '2\\*b' is neither"),
    "absurdly large": (f"x:float32[{'9' * 5000}]", "is neither"),
}


@pytest.mark.parametrize(("text", "spec"), GOOD.values(), ids=GOOD)
def test_a_good_text_is_parsed_and_written_back(text, spec):
    assert TensorSpec.parse(text) == spec
    assert TensorSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_a_bad_text_is_refused(text, message):
    with pytest.raises(InputSpecError, match=message) as caught:
        TensorSpec.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_one_of_torch(dtype):
    import torch

    assert isinstance(getattr(torch, TensorSpec.parse(f"x:{dtype}[b]").dtype), torch.dtype)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "float33", ("b",)), "cannot read input 'x:float33\\[b\\]': unknown dtype 'float33'"),
        (("x", "float32", (0,)), "dimension 0 is neither"),
        (("x", "float32", (True,)), "dimension True is neither"),
        (("x", "float32", (2.0,)), "dimension 2.0 is neither"),
        (("a b", "float32", (2,)), "'a b' is no name"),
    ],
    ids=["dtype", "size 0", "bool", "float", "name"],
)
def test_a_spec_made_by_hand_is_checked_too(arguments, message):
    with pytest.raises(InputSpecError, match=message):
        TensorSpec(*arguments)


def test_dims_may_be_given_as_a_list():
    assert TensorSpec("x", "float32", ["b", 3]) == TensorSpec("x", "float32", ("b", 3))


def test_dims_by_name_and_their_sizes():
    spec = TensorSpec.parse("x:float32[b,t,t,4]")
    assert spec.dim_names == ("b", "t")
    assert spec.shape({"b": 2, "t": 5}) == (2, 5, 5, 4)
    specs = parse_inputs(["mask:bool[t]", "x:float32[b,t,4]"])
    assert dim_names(specs) == ("t", "b")
    assert batch_dim(specs) == "t"
    assert batch_dim(parse_inputs(["x:float32[3,t]", "y:int8[]"])) is None


def test_inputs_may_be_texts_and_specs_in_a_list_or_alone():
    spec = TensorSpec("x", "float32", ("b",))
    assert parse_inputs([spec, "y:int64[b]"]) == (spec, TensorSpec("y", "int64", ("b",)))
    assert parse_inputs("x:float32[b]") == (spec,)
    assert parse_inputs(spec) == (spec,)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "no input is specified"),
        (["x:float32[b]", "x:int64[b]"], "input 'x' is given twice"),
        ([3], "cannot read input int: expected a string or TensorSpec"),
        (["x"], "cannot read input 'x'"),
    ],
    ids=["none", "twice", "a number", "bad text"],
)
def test_inputs_that_do_not_fit_are_refused(inputs, message):
    with pytest.raises(InputSpecError, match=message):
        parse_inputs(inputs)


def test_the_suffix_says_the_format():
    assert [artifact_format(f"a/b.{suffix}") for suffix in ("onnx", "ts", "pt2")] == ["onnx", "torchscript", "pt2"]


@pytest.mark.parametrize("path", ["model", "model.pt", "model.ONNX", ".onnx"])
def test_another_suffix_is_refused(path):
    with pytest.raises(UsageError, match=f"cannot tell the format of '{path}': unknown suffix") as caught:
        artifact_format(path)
    assert ".onnx, .ts, .pt2" in caught.value.hint


@pytest.mark.parametrize(
    ("tolerance", "dtype", "scale", "loop_error", "bound"),
    [
        (Tolerance(), "float32", 1.0, 0.0, 1e-5),
        (Tolerance(), "float32", 100.0, 1e-4, 4e-4),
        (Tolerance(), "float16", 1.0, 1e-4, 2e-3),
        (Tolerance(), "bfloat16", 1.0, 0.0, 2e-2),
        (Tolerance(), "float64", 1.0, 0.0, 1e-10),
        (Tolerance(), "int64", 1.0, 0.0, 0.0),
        (Tolerance(atol=0.5), "float32", 10.0, 1.0, 0.05),
        (Tolerance(rtol=1e-3), "float32", 10.0, 1.0, 1e-3),
        (Tolerance(atol=0.5, rtol=1e-3), "float32", 10.0, 1.0, 0.051),
        (Tolerance(atol=0.0, rtol=0.0), "float32", 10.0, 1.0, 0.0),
    ],
    ids=["floor", "loop", "half", "bfloat16", "double", "int", "atol", "rtol", "both", "zero"],
)
def test_the_bound_on_the_relative_error(tolerance, dtype, scale, loop_error, bound):
    assert tolerance.bound(dtype=dtype, scale=scale, loop_error=loop_error) == pytest.approx(bound)


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf], ids=str)
@pytest.mark.parametrize("name", ["atol", "rtol"])
def test_a_tolerance_that_proves_nothing_is_refused(name, value):
    with pytest.raises(UsageError, match=f"{name} is {value}: expected a finite number"):
        Tolerance(**{name: value})


def a_check(**changes):
    facts = {"artifact": "a.onnx", "provider": "CPU", "batch": 3, "member_index": 0, "output": "y", "max_abs": 0.0,
             "max_rel": 0.0, "bound": 1e-5, "passed": True}  # fmt: skip
    return Check(**facts | changes)


def test_the_worst_check_is_a_failed_one_or_uses_most_of_its_bound():
    small = a_check(max_rel=9e-6)
    wide = a_check(max_rel=1e-3, bound=2e-3, output="half")
    exact = a_check(max_rel=0.0, bound=0.0)
    dtype = a_check(passed=False, problem="expected dtype float16, got float32")
    broken = a_check(max_rel=math.inf, max_abs=math.inf, passed=False)
    assert ValidationReport((wide, small, exact)).worst is small
    assert ValidationReport((small, dtype)).worst is dtype
    assert ValidationReport((dtype, broken, small)).worst is broken


def test_a_report_passes_when_something_was_checked_and_nothing_failed():
    assert ValidationReport((a_check(),)).passed
    assert not ValidationReport((a_check(), a_check(passed=False))).passed
    assert not ValidationReport(()).passed
    with pytest.raises(ValueError, match="empty"):
        _ = ValidationReport(()).worst


def test_a_report_has_the_keys_of_the_contract():
    report = ValidationReport((a_check(max_rel=5e-6, max_abs=1e-5, batch=None), a_check())).to_dict()
    assert report["passed"] is True
    assert report["tolerance"] == 1e-5
    assert report["max_error"] == 5e-6
    contract = {"artifact", "provider", "batch", "member_index", "output", "max_abs", "max_rel", "passed"}
    assert all(contract <= check.keys() for check in report["checks"])
    assert report["checks"][0]["batch"] is None
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_report_without_checks_and_one_with_infinite_errors_are_json():
    empty = ValidationReport(()).to_dict()
    nothing = {"tolerance": None, "max_error": None, "integer_inputs": {}, "top1": {}, "checks": []}
    assert empty == {"passed": False, "members": "all", **nothing}
    assert ValidationReport((), {}, ()).to_dict() == {"passed": None, "members": [], **nothing}
    broken = ValidationReport((a_check(max_abs=math.inf, max_rel=math.inf, passed=False),)).to_dict()
    assert broken["max_error"] == broken["checks"][0]["max_abs"] == "Infinity"
    json.dumps(broken, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "written"),
    [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity"), (1.5, 1.5), (3, 3), (None, None), ("a", "a")],
    ids=str,
)
def test_numbers_json_does_not_have(value, written):
    assert json_number(value) == written
