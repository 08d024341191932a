"""Integers that rounding decides: explained where it is rounding, an error where it is not."""

import numpy as np
import pytest
import torch
from torch import nn

import ensexport
from ensexport.errors import MismatchError
from ensexport.spec import Check, ValidationReport
from ensexport.validation import explain_integers


class Tie(nn.Module):
    """Class 1 is class 0 computed in another order: which is larger is in the last digit."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(64))

    def forward(self, x):
        one = (x * self.w).sum(-1)
        other = x @ self.w
        low = torch.full_like(one, -1e9)
        return torch.stack([one, other, low], -1).argmax(-1)


def test_rounding_explains_a_near_tie_and_nothing_else():
    torch.manual_seed(1)
    net, x = Tie(), torch.randn(20, 64)
    expected = net(x).numpy()
    swapped = np.where(expected == 0, 1, 0)
    note = explain_integers(lambda: net, {"x": x}, "output", swapped)
    assert note == "20 of 20 differ, as the member's own do when its weights and inputs change by 1e-05 of their size"
    wrong = expected.copy()
    wrong[3] = 2
    assert explain_integers(lambda: net, {"x": x}, "output", wrong) == ""


def test_a_note_is_in_the_report_and_is_never_the_worst(tmp_path):
    options = {"artifact": "e.ts", "provider": "torch-cpu", "batch": 2, "member_index": 0, "max_abs": 1.0}
    noted = Check(output="order", max_rel=1.0, bound=0.0, passed=True, note="1 of 9 differ", **options)
    usual = Check(output="y", max_rel=1e-7, bound=1e-5, passed=True, **options)
    report = ValidationReport((noted, usual))
    assert report.passed
    assert report.worst is usual
    assert [check["note"] for check in report.to_dict()["checks"]] == ["1 of 9 differ", ""]


def test_integers_of_another_member_are_not_explained(tmp_path):
    class Ranks(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 6)

        def forward(self, x):
            return self.body(x).argsort(-1)

    for index in range(2):
        torch.manual_seed(index)
        torch.save(Ranks().state_dict(), tmp_path / f"m{index}.pt")
    members = ensexport.load_members(tmp_path, model=Ranks)
    ensexport.export(members, tmp_path / "e.ts", inputs=["x:float32[batch,4]"], batches=(2,), seeds=(0,))
    torch.manual_seed(5)
    torch.save(Ranks().state_dict(), tmp_path / "m1.pt")
    with pytest.raises(MismatchError, match=r"output 'output' of .* at member 1"):
        ensexport.validate(tmp_path / "e.ts", ensexport.load_members(tmp_path, model=Ranks), batches=(2,), seeds=(0,))
