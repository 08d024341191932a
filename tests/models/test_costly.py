"""Members that take seconds are compared on fewer rows, and no less surely."""

import pytest
import torch
from torch import nn

import ensexport
from ensexport import probes
from ensexport.errors import MismatchError
from ensexport.references import reference_outputs
from ensexport.spec import parse_inputs

INPUTS = ["x:float32[batch,4]"]


class Net(nn.Module):
    """Counts the rows it was given in float64."""

    rows = 0

    def __init__(self, mixes_rows=False, splits_rows=False):
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.mixes_rows, self.splits_rows = mixes_rows, splits_rows

    def forward(self, x):
        if x.dtype is torch.float64:
            Net.rows += len(x)
        y = self.body(x)
        if self.splits_rows:
            y = y.reshape(-1, 1)
        return {"y": y - y.mean(0) if self.mixes_rows else y, "order": y.argsort(-1), "w": self.body.weight}


@pytest.fixture
def costly(monkeypatch):
    monkeypatch.setattr(probes, "_MAX_S", 0.0)
    Net.rows = 0


def members(tmp_path, **options):
    folder = tmp_path / "ckpts"
    folder.mkdir(exist_ok=True)
    for index in range(3):
        torch.manual_seed(index)
        torch.save(Net().state_dict(), folder / f"m{index}.pt")
    return ensexport.load_members(folder, model=Net, model_args=options or None)


def test_each_batch_size_is_still_compared(costly, tmp_path):
    report = ensexport.export(members(tmp_path), [tmp_path / "e.onnx", tmp_path / "e.ts"], inputs=INPUTS)
    checks = report.validation.checks
    for name, level in (("e.onnx", "all"), ("e.ts", "")):
        done = {c.batch for c in checks if c.artifact.endswith(name) and c.optimization == level}
        assert done == {1, 2, 3, 7, 13}
    assert {c.batch for c in checks if c.optimization == "disabled"} == {3}
    assert Net.rows == 3 * 3  # three rows a member


@pytest.mark.parametrize("options", [{}, {"mixes_rows": True}, {"splits_rows": True}], ids=["by row", "mixed", "split"])
def test_references_are_the_same_as_the_loops(costly, tmp_path, options):
    source, by_row = members(tmp_path, **options), not options
    options = {"example_sizes": {"batch": 3}, "dim_ranges": {"batch": (1, None)}}
    found = probes.find_probes(source.build(0), parse_inputs(INPUTS), ["x"], 3, **options).probes
    assert sorted(probe.batch for probe in found) == [1, 2, 3, 7, 13]
    for index, row in enumerate(reference_outputs(source, found, ["x"])):
        for probe, reference in zip(found, row, strict=True):
            expected = source.build(index)(probe.feed["x"][index])
            for name, value in expected.items():
                assert reference.expected[name] == pytest.approx(value.detach().numpy(), rel=1e-5, abs=1e-6)
    assert Net.rows == (3 * 3 if by_row else 3 * 26)


def test_a_wrong_member_is_caught(costly, tmp_path):
    ensexport.export(members(tmp_path), tmp_path / "e.ts", inputs=INPUTS)
    state = torch.load(tmp_path / "ckpts/m1.pt", weights_only=True)
    state["body.weight"][2, 1] *= 1.01
    torch.save(state, tmp_path / "ckpts/m1.pt")
    changed = ensexport.load_members(tmp_path / "ckpts", model=Net)
    with pytest.raises(MismatchError, match="at member 1") as caught:
        ensexport.validate(tmp_path / "e.ts", changed)
    failed = [c for c in caught.value.details["validation"]["checks"] if not c["passed"]]
    assert {c["batch"] for c in failed} == {1, 2, 3, 7, 13}
