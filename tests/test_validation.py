"""An artifact that is silently wrong must be caught, and the message must lead to what is wrong with it."""

import io
import json
import math
import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import ensexport
from ensexport import Tolerance, load_members, stack, validate, validation
from ensexport.errors import ArtifactError, MismatchError, ModelInputError, UsageError
from ensexport.probes import make_probes
from ensexport.references import Reference
from ensexport.spec import Check, ValidationReport, parse_inputs
from ensexport.stacking import run_member
from ensexport.validation import raise_on_mismatch

NUMBER = r"-?(\d+(\.\d+)?(e[+-]\d+)?|inf|nan)"


# -- artifacts that the exporter wrote for slightly other members ------------------------------------


class Net(nn.Module):
    def __init__(self, eps=1e-5, safe=False, out=torch.float32):
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6, eps=eps)
        self.head = nn.Linear(6, 3)
        nn.init.uniform_(self.norm.running_mean, -1, 1)
        nn.init.uniform_(self.norm.running_var, 0.1, 0.3)
        self.safe = safe
        self.out = out

    def forward(self, x):
        y = self.head(torch.relu(self.norm(self.body(x))))
        root = torch.sqrt(x.clamp(min=0.01) if self.safe else x)
        return {"logits": y.to(self.out), "root": root}


def nets(**options):
    made = []
    for seed in range(3):
        torch.manual_seed(seed)
        made.append(Net(**options).eval())
    return made


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ckpts")
    for index, net in enumerate(nets()):
        torch.save(net.state_dict(), folder / f"m{index}.pt")
    return load_members(folder, Net)


def scaled(modules):
    modules[1].head.weight.data.mul_(1.001)
    return modules


def swapped(modules):
    return [modules[0], modules[2], modules[1]]


def repeated(modules):
    return [modules[0], modules[1], modules[1]]


def stale_buffer(modules):
    modules[2].norm.running_mean.copy_(modules[1].norm.running_mean)
    return modules


# What is packed instead of the members: the change, options of the class, and the members it can be seen in.
WRONG = {
    "swapped members": (swapped, {}, (1, 2)),
    "one layer scaled by 1.001": (scaled, {}, (1,)),
    "a member repeated": (repeated, {}, (2,)),
    "a stale buffer": (stale_buffer, {}, (2,)),
    "a wrong eps": (list, {"eps": 1e-2}, (0, 1, 2)),
}
INPUTS = ["x:float32[batch,4]"]
QUICK = {"batches": (2,), "seeds": (0,)}  # for export's own proof; what is tested here is `validate`


@pytest.mark.parametrize("suffix", ["ts", "onnx", "pt2"])
def test_a_good_artifact_passes(members, tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    ensexport.export(members, path, inputs=INPUTS, **QUICK)
    told = []
    report = validate(path, members, on_progress=lambda *what: told.append(what))
    assert report.passed
    assert {check.batch for check in report.checks} == {1, 2, 3, 7, 13}
    assert {check.member_index for check in report.checks} == {0, 1, 2}
    assert {check.output for check in report.checks} == {"logits", "root"}
    assert {check.seed for check in report.checks} == {0, 1, 2}
    assert {check.optimization for check in report.checks} == ({"disabled", "all"} if suffix == "onnx" else {""})
    assert report.worst.max_rel <= report.worst.bound < 1e-4
    assert told[-1] == ("loop", 3, 3)
    json.dumps(report.to_dict(), allow_nan=False)


def refusal(path, members, **options):
    with pytest.raises(MismatchError) as caught:
        validate(path, members, **options)
    json.dumps(caught.value.to_dict(), allow_nan=False)
    assert caught.value.exit_code == 5
    return caught.value


def loop_value(members, check, index):
    """What the float64 loop gives where a check says the largest difference is."""
    probes = make_probes(parse_inputs(INPUTS), (), 3, example_sizes={"batch": 3}, dim_ranges={"batch": (1, None)})
    probe = next(p for p in probes if (p.batch, p.seed) == (check["batch"], check["seed"]))
    outputs = run_member(members.build(check["member_index"]), probe.feed, dtype=torch.float64)
    return outputs[check["output"]][tuple(index)].item()


@pytest.mark.parametrize(("change", "options", "indices"), WRONG.values(), ids=WRONG)
def test_a_silently_wrong_artifact_is_caught(members, tmp_path, change, options, indices):
    path = tmp_path / "a.ts"
    ensexport.export(stack(change(nets(**options))), path, inputs=INPUTS, **QUICK)
    error = refusal(path, members)
    failed = {check["member_index"] for check in error.details["validation"]["checks"] if not check["passed"]}
    assert failed == set(indices)
    where = error.details["member_index"]
    assert where in indices
    pattern = (
        rf"output 'logits' of '{path}' differs from the baseline: max abs diff {NUMBER}, relative {NUMBER} > {NUMBER}, "
        rf"at member {where} \(.*m{where}\.pt\), index \(\d+, \d\), batch \d+, float32, torch-cpu: "
        rf"expected {NUMBER}, got {NUMBER}\. \d+ other checks failed too\."
    )
    assert torch.Size(error.details["index"])
    assert re.search(pattern, error.message), error.message
    assert f"expected {error.details['expected']:.9g}, got {error.details['actual']:.9g}" in error.message
    assert "--rtol" in error.hint
    worst = max(error.details["validation"]["checks"], key=lambda check: check["max_rel"] / check["bound"])
    expected = loop_value(members, worst, error.details["index"])
    assert error.details["expected"] == pytest.approx(expected, rel=1e-12)
    assert abs(error.details["expected"] - error.details["actual"]) == pytest.approx(worst["max_abs"])


def test_an_onnx_file_is_caught_with_its_provider_and_optimisation_level(members, tmp_path):
    path = tmp_path / "a.onnx"
    ensexport.export(stack(scaled(nets())), path, inputs=INPUTS, **QUICK)
    error = refusal(path, members)
    assert "at member 1 (" in error.message
    assert "CPUExecutionProvider, graph optimisation " in error.message
    # A wide bound lets the values pass; the digest of the weights still tells another network.
    with pytest.raises(MismatchError, match="is not the network") as caught:
        validate(path, members, tolerance=Tolerance(rtol=0.01))
    assert caught.value.details["member_index"] == 1


@pytest.mark.parametrize("safe", [True, False], ids=["NaN dropped", "NaN added"])
def test_nan_on_one_side_only_is_caught(tmp_path, safe):
    for index, net in enumerate(nets()):
        torch.save(net.state_dict(), tmp_path / f"m{index}.pt")
    path = tmp_path / "a.ts"
    ensexport.export(stack(nets(safe=safe)), path, inputs=INPUTS, **QUICK)
    error = refusal(path, load_members(tmp_path, Net, model_args={"safe": not safe}))
    assert "output 'root' of" in error.message
    assert "NaN or Inf on one side only, at member " in error.message
    assert (r"expected nan, got 0.1" if safe else r"expected 0.1, got nan") in error.message
    assert error.details["expected" if safe else "actual"] == "NaN"
    assert error.details["validation"]["max_error"] == "Infinity"
    assert "report it" in error.hint


def test_a_promoted_dtype_is_caught_even_where_the_values_agree(tmp_path):
    for index, net in enumerate(nets()):
        torch.save(net.state_dict(), tmp_path / f"m{index}.pt")
    path = tmp_path / "a.ts"
    ensexport.export(stack(nets()), path, inputs=INPUTS, **QUICK)
    error = refusal(path, load_members(tmp_path, Net, model_args={"out": torch.float16}), tolerance=Tolerance(rtol=1.0))
    assert "output 'logits' of" in error.message
    assert "differs from the baseline: expected dtype float16, got float32, at member " in error.message
    assert "--rtol" not in error.hint


def test_a_batch_that_was_frozen_is_caught(members, tmp_path):
    path = tmp_path / "a.onnx"
    ensexport.export(members, path, inputs=["x:float32[3,4]"], **QUICK)
    model = onnx.load(path)
    entry = next(entry for entry in model.metadata_props if entry.key == "ensexport")
    entry.value = json.dumps(json.loads(entry.value) | {"inputs": INPUTS, "dims": {"batch": [1, None]}})
    onnx.save(model, path)
    error = refusal(path, members)
    assert f"'{path}' fails on CPUExecutionProvider at sizes {{'batch': 1}}, where the members run: " in error.message
    assert "Got: 1 Expected: 3" in error.message


def test_a_change_too_small_to_show_is_caught_by_the_weights_themselves(members, tmp_path):
    path = tmp_path / "a.ts"
    ensexport.export(members, path, inputs=INPUTS, **QUICK)
    for index, net in enumerate(nets()):
        if index == 1:
            weight = net.body.weight.data
            weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
        torch.save(net.state_dict(), tmp_path / f"m{index}.pt")
    error = refusal(path, load_members(tmp_path / "m?.pt", Net))
    assert f"member 1 ({tmp_path}/m1.pt) is not the network that '{path}' holds as member 1 ('m1.pt')" in error.message
    assert f"expected weights sha256 {members[1].weights_sha256[:12]}..., got " in error.message
    assert "within the bound" in error.message
    assert error.details["member_index"] == 1
    assert error.details["validation"]["passed"] is True


@pytest.mark.parametrize("member_axis", [0, 1])
def test_per_member_inputs_and_the_member_axis(members, tmp_path, member_axis):
    path = tmp_path / "a.ts"
    ensexport.export(members, path, inputs=INPUTS, **QUICK, per_member=["x"], member_axis=member_axis)
    assert validate(path, members).passed
    other = load_members([member.path for member in (members[0], members[2], members[1])], Net)
    assert refusal(path, other).details["member_index"] in (1, 2)


def test_output_names_of_the_artifacts_own(members, tmp_path):
    path = tmp_path / "a.ts"
    ensexport.export(members, path, inputs=INPUTS, **QUICK, output_names=["scores", "r"])
    assert {check.output for check in validate(path, members).checks} == {"scores", "r"}


# -- artifacts written by hand -----------------------------------------------------------------------


class Times(nn.Module):
    """y = x * weight: what an artifact should return is known without any library."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, x):
        return x * self.weight


class Signs(Times):
    def forward(self, x):
        y = x * self.weight
        return {"y": y, "count": (y > 0).sum(1) + 2**53, "positive": y > 0}


class Insists(Times):
    """Runs in float32 whatever it is given."""

    def forward(self, x):
        return nn.functional.linear(x.float(), self.weight.reshape(1, 1).expand(2, 2))


def times(folder, kind=Times, weights=(1.0, 2.0), **options):
    for index, weight in enumerate(weights):
        module = kind(**options)
        module.weight.data.fill_(weight)
        torch.save(module.state_dict(), folder / f"w{index}.pt")
    return load_members(folder / "w?.pt", kind, model_args=options)


def by_hand(path, module, **changes):
    """Write a TorchScript artifact that claims to hold two members with one input and one output."""
    metadata = {
        "n_members": 2, "member_axis": 0, "inputs": ["x:float32[batch,2]"], "per_member": [], "outputs": ["y"],
        "dims": {"batch": [1, None]}, "members": [{}, {}],
    } | changes  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; its files are still in use
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(module), buffer, _extra_files={"ensexport.json": json.dumps(metadata)})
    path.write_bytes(buffer.getvalue())
    return path


class Right(nn.Module):
    def forward(self, x):
        return torch.stack([x, x * 2])


class OneTooMany(nn.Module):
    def forward(self, x):
        return torch.stack([x, x * 2, x * 3])


class OneForAll(nn.Module):
    def forward(self, x):
        return x


class OtherAxis(nn.Module):
    def forward(self, x):
        return torch.stack([x, x * 2], 1)


class FirstThreeRows(nn.Module):
    def forward(self, x):
        return torch.stack([x, x * 2])[:, :3]


class Doubled(nn.Module):
    def forward(self, x):
        return torch.stack([x, x * 2]).double()


class NotAlone(nn.Module):
    def forward(self, x):
        assert x.shape[0] != 1, "one row is not enough"
        return torch.stack([x, x * 2])


class TwoOutputs(nn.Module):
    def forward(self, x):
        return torch.stack([x, x * 2]), x


BY_HAND = {
    "one too many": (OneTooMany, r"expected shape \(2, \d+, 2\), got \(3, \d+, 2\), at member 0"),
    "one for all": (OneForAll, r"expected shape \(2, \d+, 2\), got \(\d+, 2\), at member 0"),
    "another axis": (OtherAxis, r"expected shape \(2, \d+, 2\), got \(\d+, 2, 2\), at member 0"),
    "a frozen batch": (FirstThreeRows, r"expected shape \(2, 7, 2\), got \(2, 3, 2\), at member 0"),
    "a promoted dtype": (Doubled, r"expected dtype float32, got float64, at member 0 \(.*\), index"),
    "an error": (
        NotAlone,
        r"fails on torch-cpu at sizes \{'batch': 1\}, where the members run: .*one row is not enough",
    ),
}


@pytest.mark.parametrize(("module", "message"), BY_HAND.values(), ids=BY_HAND)
def test_artifacts_of_another_form(tmp_path, module, message):
    members = times(tmp_path)
    assert validate(by_hand(tmp_path / "good.ts", Right()), members).passed
    error = refusal(by_hand(tmp_path / "bad.ts", module()), members)
    assert re.search(message, error.message, re.DOTALL), error.message
    assert "nan" not in error.message
    assert "\n" not in error.message


def test_an_onnx_file_without_a_promised_output(tmp_path):
    node = helper.make_node("Identity", ["x"], ["z"])
    infos = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 2])] for name in ("x", "z")]
    model = helper.make_model(
        helper.make_graph([node], "g", *infos), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    metadata = {"n_members": 2, "member_axis": 0, "inputs": ["x:float32[batch,2]"], "per_member": [],
                "outputs": ["y"], "dims": {"batch": [1, None]}, "members": [{}, {}]}  # fmt: skip
    helper.set_model_props(model, {"ensexport": json.dumps(metadata)})
    onnx.save(model, tmp_path / "a.onnx")
    assert "has no output 'y': it returns z." in refusal(tmp_path / "a.onnx", times(tmp_path)).message


def test_a_file_that_returns_more_than_it_names(tmp_path):
    with pytest.raises(ArtifactError, match=r"returns 2 outputs: expected 1 \(y\)"):
        validate(by_hand(tmp_path / "a.ts", TwoOutputs()), times(tmp_path))


class Counts(nn.Module):
    """Right, unless `more` is added to one count above 2**53, or one flag is flipped."""

    more: int
    flip: bool

    def __init__(self, more: int, flip: bool):
        super().__init__()
        self.more = more
        self.flip = flip

    def forward(self, x):
        y = torch.stack([x, x * 2])
        positive = y > 0
        count = positive.sum(2) + 9007199254740992
        if self.more != 0:
            count[1, -1] += self.more
        if self.flip:
            positive[1, 0, 1] = torch.logical_not(positive[1, 0, 1])
        return y, count, positive


@pytest.mark.parametrize("tolerance", [None, Tolerance(rtol=0.5, atol=100.0)], ids=["default", "wide"])
def test_integers_and_booleans_must_agree_exactly(tmp_path, tolerance):
    members = times(tmp_path, Signs)
    names = {"outputs": ["y", "count", "positive"]}
    assert validate(by_hand(tmp_path / "good.ts", Counts(0, False), **names), members).passed
    error = refusal(by_hand(tmp_path / "count.ts", Counts(1, False), **names), members, tolerance=tolerance)
    assert "output 'count' of" in error.message
    assert "at member 1 (" in error.message
    assert f"expected {error.details['expected']}, got {error.details['expected'] + 1}" in error.message
    assert error.details["expected"] >= 2**53
    assert "--rtol" not in error.hint
    error = refusal(by_hand(tmp_path / "flag.ts", Counts(0, True), **names), members, tolerance=tolerance)
    assert "output 'positive' of" in error.message
    assert {error.details["expected"], error.details["actual"]} == {0, 1}


class Half(nn.Module):
    """Times 1 and times 60000 in float16, which overflows; wrong in one way or not."""

    wrong: str

    def __init__(self, wrong: str):
        super().__init__()
        self.wrong = wrong

    def forward(self, x):
        y = torch.stack([x, x * 60000])
        if self.wrong == "NaN":
            y[1] = torch.nan_to_num(y[1] * 0, nan=float("nan"), posinf=float("nan")) + y[1] * float("nan")
        if self.wrong == "finite":
            y[1] = torch.nan_to_num(y[1])
        if self.wrong == "small":
            y[1] = torch.where(torch.isinf(y[1]), y[1], y[1] * 0.9)
        return y


@pytest.mark.parametrize("wrong", ["", "NaN", "finite", "small"], ids=["right", "NaN", "clipped", "another value"])
def test_members_that_overflow_do_not_make_everything_pass(tmp_path, wrong):
    """The float64 loop does not overflow where the members do: the members' own Inf is what is expected there."""
    members = times(tmp_path, weights=(1.0, 60000.0), dtype=torch.float16)
    path = by_hand(tmp_path / "a.ts", Half(wrong), inputs=["x:float16[batch,2]"])
    if not wrong:
        assert validate(path, members).passed
        return
    error = refusal(path, members)
    assert "at member 1 (" in error.message
    assert ("NaN or Inf on one side only" in error.message) == (wrong != "small")


class TimesTwo(nn.Module):
    """Times 1 and times 2, the second one off by a factor."""

    factor: float

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return torch.stack([x, x * 2 * self.factor])


@pytest.mark.parametrize(
    ("dtype", "off"), [("float16", 1.01), ("bfloat16", 1.1), ("float32", 1.0001), ("float64", 1 + 1e-9)]
)
def test_every_float_dtype_has_a_bound_of_its_own(tmp_path, dtype, off):
    members = times(tmp_path, dtype=getattr(torch, dtype))
    inputs = {"inputs": [f"x:{dtype}[batch,2]"]}
    assert validate(by_hand(tmp_path / "good.ts", TimesTwo(1.0), **inputs), members).passed
    error = refusal(by_hand(tmp_path / "bad.ts", TimesTwo(off), **inputs), members)
    assert "at member 1 (" in error.message
    assert f", {dtype}, torch-cpu: expected " in error.message


class InFloat(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        y = x.sum(1, keepdim=True).expand(-1, 2)
        return torch.stack([y, y * 2 * self.factor])


def test_a_model_that_insists_on_its_dtype_is_its_own_reference(tmp_path):
    members = times(tmp_path, Insists)
    assert validate(by_hand(tmp_path / "good.ts", InFloat(1.0)), members).passed
    assert "at member 1 (" in refusal(by_hand(tmp_path / "bad.ts", InFloat(1.001)), members).message


class Picky(Times):
    def forward(self, x):
        assert x.dtype is torch.float32, "the model's own words"
        return x * self.weight


def test_a_model_that_refuses_float64_in_its_own_way_is_its_own_reference(tmp_path):
    members = times(tmp_path, Picky)
    assert validate(by_hand(tmp_path / "good.ts", TimesTwo(1.0)), members).passed
    assert "at member 1 (" in refusal(by_hand(tmp_path / "bad.ts", TimesTwo(1.001)), members).message


class Moody(Times):
    runs = 0

    def forward(self, x):
        Moody.runs += 1
        if Moody.runs > 10:
            raise RuntimeError("the model's own words")
        return x * self.weight


def test_an_error_of_the_loop_names_the_member_and_the_line(tmp_path):
    with pytest.raises(
        ModelInputError, match=r"member 0 fails on random inputs.*the model's own words \(test_valid"
    ) as e:
        validate(by_hand(tmp_path / "a.ts", Right()), times(tmp_path, Moody))
    assert e.value.details["member_index"] == 0


# -- what cannot be compared -------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0)], ids=["fewer", "more"])
def test_another_number_of_checkpoints(tmp_path, weights):
    path = by_hand(tmp_path / "a.ts", Right())
    with pytest.raises(ArtifactError, match=f"'{path}' holds 2 members, and {len(weights)} checkpoints were") as caught:
        validate(path, times(tmp_path, weights=weights))
    assert caught.value.exit_code == 3
    assert "in the same order" in caught.value.hint


def test_another_number_of_outputs(tmp_path):
    path = by_hand(tmp_path / "a.ts", Right())
    with pytest.raises(ArtifactError, match="has the outputs y, and the model returns y, count, positive"):
        validate(path, times(tmp_path, Signs))


def test_a_model_that_does_not_take_the_inputs(tmp_path):
    path = by_hand(tmp_path / "a.ts", Right(), inputs=["x:float32[batch,2]", "z:float32[batch]"])
    with pytest.raises(ModelInputError, match=r"cannot bind the inputs \(x, z\) to Times\.forward\(x\)"):
        validate(path, times(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seeds": ()}, "no seed is given"), ({"batches": (0,)}, "expected 1 or more"), ({"provider": "tpu"}, "'tpu'")],
    ids=["seeds", "batches", "provider"],
)
def test_options_that_make_no_sense(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        validate(by_hand(tmp_path / "a.ts", Right()), times(tmp_path), **options)


# -- the message -------------------------------------------------------------------------------------


def a_check(**changes):
    facts = {"artifact": "a.onnx", "provider": "CPU", "batch": 3, "member_index": 1, "output": "y", "max_abs": 0.25,
             "max_rel": 0.5, "bound": 1e-5, "passed": False, "index": (0, 7), "expected": 1.0, "actual": 1.25,
             "dtype": "float32"}  # fmt: skip
    return Check(**facts | changes)


LABELS = ["member 0 (a.pt)", "member 1 (b.pt)"]
MESSAGES = {
    "values": (
        {},
        "output 'y' of 'a.onnx' differs from the baseline: max abs diff 0.25, relative 0.5 > 1e-05, at "
        "member 1 (b.pt), index (0, 7), batch 3, float32, CPU: expected 1, got 1.25.",
    ),
    "optimised": ({"optimization": "all"}, "batch 3, float32, CPU, graph optimisation all: expected 1, got 1.25."),
    "no batch": ({"batch": None, "index": ()}, "index (), batch None, float32, CPU: expected 1, got 1.25."),
    "integers": (
        {"expected": 2**53, "actual": 2**53 + 1, "max_abs": 1.0, "dtype": "int64", "bound": 0.0},
        "max abs diff 1, relative 0.5 > 0, at member 1 (b.pt), index (0, 7), batch 3, int64, CPU: "
        "expected 9007199254740992, got 9007199254740993.",
    ),
    "NaN": (
        {"expected": math.nan, "max_abs": math.inf, "max_rel": math.inf},
        "the baseline: NaN or Inf on one side only, at member 1 (b.pt), index (0, 7), batch 3, float32, CPU: "
        "expected nan, got 1.25.",
    ),
    "dtypes": (
        {"problem": "expected dtype float16, got float32", "max_abs": 0.0, "max_rel": 0.0, "actual": 1.0},
        "the baseline: expected dtype float16, got float32, at member 1 (b.pt), index (0, 7), batch 3, float32, CPU: "
        "expected 1, got 1.",
    ),
    "shapes": (
        {"problem": "expected shape (2, 3), got (3,)", "max_abs": math.inf, "max_rel": math.inf, "index": (),
         "expected": math.nan, "actual": math.nan},
        "the baseline: expected shape (2, 3), got (3,), at member 1 (b.pt), batch 3, float32, CPU.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), MESSAGES.values(), ids=MESSAGES)
def test_what_the_message_says(changes, message):
    with pytest.raises(MismatchError) as caught:
        raise_on_mismatch(ValidationReport((a_check(passed=True, max_rel=0.0), a_check(**changes))), LABELS)
    assert message in caught.value.message
    text = json.dumps(caught.value.to_dict(), allow_nan=False)
    assert json.loads(text)["member_index"] == 1


def test_the_other_failures_are_counted():
    with pytest.raises(MismatchError, match="2 other checks failed too"):
        raise_on_mismatch(ValidationReport((a_check(), a_check(), a_check(), a_check(passed=True))), LABELS)


def test_a_report_that_passed_raises_nothing_and_one_without_checks_does():
    raise_on_mismatch(ValidationReport((a_check(passed=True),)), LABELS)
    with pytest.raises(MismatchError, match="nothing was compared, so nothing is proven"):
        raise_on_mismatch(ValidationReport(()), LABELS)


# -- the bound where rounding is multiplied --------------------------------------------------------


def _reference(value, loop_error):
    return Reference({"y": np.array([[value]])}, {"y": loop_error}, {"y": "float32"})


class _Runner:
    provider, optimization = "CPUExecutionProvider", "all"

    def __init__(self, *answers):
        self.answers = list(answers)

    def run(self, feed):
        return {"y": np.array([[[self.answers.pop(0)]]], dtype=np.float32)}


@pytest.mark.parametrize(
    ("loop_errors", "difference", "passed"),
    [
        ((1e-7, 1e-4, 1e-4), 3e-4, True),  # the member's own error is small here, but not as a rule
        ((1e-7, 1e-4, 1e-4), 5e-4, False),
        ((1e-7, 1e-7, 1e-1), 1e-4, False),  # one outlier says nothing of the rest
        ((1e-7, 1e-7, 1e-1), 3e-6, True),  # the floor
    ],
)
def test_bound_is_the_members_own_error_there_or_as_a_rule(monkeypatch, loop_errors, difference, passed):
    references = [[_reference(1.0, error) for error in loop_errors]]
    sizes = {"example_sizes": {"batch": 2}, "dim_ranges": {"batch": (1, None)}}
    probes = make_probes(parse_inputs(["x:float32[batch,1]"]), (), 1, **sizes, batches=(1, 2, 3), seeds=(0,))
    monkeypatch.setattr(validation, "open_runners", lambda *_, **__: [_Runner(1 + difference, 1.0, 1.0)])
    checks = validation.check_artifact(
        Path("e.onnx"), "e.onnx", references, probes, output_names=["y"], tolerance=Tolerance()
    )
    assert checks[0].passed is passed
