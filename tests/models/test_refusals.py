"""What cannot be packed is refused with the line of the model that is to blame, and what to do."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ensexport
from ensexport.errors import (
    ControlFlowError,
    ExportError,
    FrozenDimError,
    ModelInputError,
    MutationError,
    RandomModelError,
)
from tests.models import habits, sequences

X = ["x:float32[batch,4]"]


class AcrossRows(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, x):
        return sum(self.body(row) for row in x)


class WrongWidth(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(5, 4)

    def forward(self, x):
        return self.body(x)


class Noise(nn.Module):
    """The same noise in each run of this class's test: only its op tells."""

    def forward(self, x):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return x + torch.randn(x.shape[0], 4)


CASES = {
    "a branch on values": (habits.Branch, X, ControlFlowError, 4, r"on the values of its data \(habits.py:\d+ in"),
    "a size out of values": (habits.Item, [*X, "k:int64[1]"], ControlFlowError, 4, r"\(habits.py:\d+ in forward\)"),
    "a shape out of values": (
        habits.NonZero, X, ControlFlowError, 4, r"shape of an output .*\(aten.index.Tensor, habits.py:\d+ in"),
    "view(3, -1)": (
        habits.FixedView, X, FrozenDimError, 6, r"'batch' \(fixed at 3\) .* at habits.py:\d+ in .*view\(3, -1\)"),
    "view(8, -1)": (
        habits.FixedView8, X, FrozenDimError, 6, r"'batch' \(fixed at 8\) .* at habits.py:\d+ in .*view\(8, -1, 4\)"),
    "a parameter of 16 rows": (
        habits.FixedAdd, X, FrozenDimError, 6, r"\(fixed at 16\) .* at habits.py:\d+ in forward: return x \+ self.w"),
    "a loop over the batch": (AcrossRows, X, FrozenDimError, 6, r"'batch' \(fixed at 3\) .* in forward: return sum"),
    "noise": (habits.RandIn, X, RandomModelError, 4, "differs between two runs"),
    "noise from a fixed seed": (Noise, X, RandomModelError, 4, r"random numbers .*\(aten.randn.*test_refusals.py:\d+"),
    "dropout that is always on": (habits.DropOn, X, RandomModelError, 4, "differs between two runs"),
    "a counter": (habits.Counter, X, (RandomModelError, MutationError), 4, "calls|differs between two runs"),
    "another width": (WrongWidth, X, ModelInputError, 4, r"not accept the inputs x:float32.*test_refusals.py:\d+"),
}  # fmt: skip


@pytest.mark.parametrize(("build", "inputs", "error", "code", "message"), CASES.values(), ids=CASES)
def test_a_model_that_cannot_be_packed(build, inputs, error, code, message, tmp_path):
    with pytest.raises(error, match=message) as caught:
        ensexport.export(ensexport.stack([build(), build()]), tmp_path / "e.ts", inputs=inputs)
    assert caught.value.exit_code == code
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_projection_has_no_onnx_form_and_packs_to_torchscript(tmp_path):
    ensemble = ensexport.stack([sequences.LSTMProj(), sequences.LSTMProj()])
    inputs = ["x:float32[batch,t,6]"]
    with pytest.raises(ExportError, match=r"no form for an LSTM with proj_size \(sequences.py:\d+ in forward\)"):
        ensexport.export(ensemble, tmp_path / "e.onnx", inputs=inputs)
    report = ensexport.export(ensemble, tmp_path / "e.ts", inputs=inputs, batches=(1, 3), seeds=(0,))
    assert report.dims == {"batch": (1, None), "t": (1, None)}


class Renorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, x):
        return torch.renorm(F.relu(self.body(x)), 2, 0, 1.0)


def test_an_op_without_a_rule_packs_and_is_named(tmp_path):
    report = ensexport.export(ensexport.stack([Renorm(), Renorm()]), tmp_path / "e.ts", inputs=X)
    (fallback,) = report.plan.fallbacks
    assert fallback.op == "aten.renorm.default"
    assert fallback.step in ("vmap", "unroll_op")
    assert fallback.source.startswith("test_refusals.py:")


@pytest.mark.slow
def test_the_command_says_it_in_json(tmp_path):
    (tmp_path / "ckpts").mkdir()
    (tmp_path / "model.py").write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.f = nn.Linear(4, 4)\n\n    def forward(self, x):\n        return self.f(x).view(8, -1, 4)\n"
    )
    for index in range(2):
        torch.save({"f.weight": torch.randn(4, 4), "f.bias": torch.randn(4)}, tmp_path / f"ckpts/m{index}.pt")
    command = ["pack", "ckpts/", "--model", "model.py:Net", "--input", X[0], "-o", "e.onnx", "--json"]
    done = subprocess.run([sys.executable, "-m", "ensexport", *command], cwd=tmp_path, capture_output=True, text=True)
    answer = json.loads(done.stdout)
    assert done.returncode == answer["exit_code"] == 6
    assert "fixed at 8" in answer["error"]["message"]
    assert "model.py:9 in forward: return self.f(x).view(8, -1, 4)" in answer["error"]["message"]
    assert not (tmp_path / "e.onnx").exists()
