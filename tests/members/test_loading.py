import argparse
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from ensexport.errors import (
    ArchitectureError,
    CheckpointError,
    NoCheckpointError,
    NonFiniteWeightsError,
    StackError,
    UsageError,
)
from ensexport.members.loading import load_members
from ensexport.members.tensors import weights_digest


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.norm(self.body(x)))


def trained(seed, **arguments):
    torch.manual_seed(seed)
    net = Net(**arguments)
    net(torch.randn(8, 3))
    return net.eval()


def save_nets(folder, nets):
    for index, net in enumerate(nets):
        torch.save(net.state_dict(), folder / f"m{index}.pt")
    return folder


@pytest.fixture
def runs(tmp_path):
    return save_nets(tmp_path, [trained(seed) for seed in range(3)])


def test_every_member_is_rebuilt_exactly(runs):
    members = load_members(runs, Net)
    x = torch.randn(5, 3)
    assert len(members) == 3
    for index in range(3):
        module = members.build(index)
        assert torch.equal(module(x), trained(index)(x))
        assert not any(part.training for part in module.modules())
        assert not any(tensor.requires_grad for tensor in module.parameters())
    assert members.warnings == ()
    assert members.skipped == ()
    assert members.architecture.name == "Net"
    assert repr(members) == "Members(n_members=3, architecture='Net')"


def test_members_hold_their_facts_in_natural_order(tmp_path):
    for name in ("m10.pt", "m9.pt", "notes.txt"):
        torch.save(
            {"model": {"module.w": torch.zeros(int(name[1:-3]) if name[1] != "o" else 1)[:1]}},
            tmp_path / name,
        )
    members = load_members(str(tmp_path))
    assert [(member.index, Path(member.path).name) for member in members] == [(0, "m9.pt"), (1, "m10.pt")]
    assert members[1].container_key == "model"
    assert members[1].stripped_prefix == "module."
    assert members[1].weights_sha256 == weights_digest(members[1].state)
    assert members[1].label == f"member 1 ({tmp_path / 'm10.pt'})"
    assert members.labels == (members[0].label, members[1].label)
    assert members[:1] == (members[0],)
    assert [Path(item.path).name for item in members.skipped] == ["notes.txt"]
    assert members.architecture is None


def test_the_same_weights_in_another_format_have_the_same_digest(tmp_path):
    state = trained(0).state_dict()
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    save_file(state, tmp_path / "b.safetensors")
    members = load_members(tmp_path, Net)
    assert members[0].weights_sha256 == members[1].weights_sha256
    assert members[0].sha256 != members[1].sha256
    assert members.warnings == ("members 0 and 1 hold identical weights: leave all but one out, unless it is meant.",)


def test_progress_is_reported_file_by_file_in_bytes(runs):
    calls = []
    load_members(runs, on_progress=lambda *call: calls.append(call))
    sizes = [(runs / f"m{index}.pt").stat().st_size for index in range(3)]
    assert calls == [(str(runs / f"m{index}.pt"), sum(sizes[: index + 1]), sum(sizes)) for index in range(3)]


def test_a_member_keeps_its_own_dtype(tmp_path):
    for index in range(2):
        torch.save(trained(index).to(torch.bfloat16).state_dict(), tmp_path / f"m{index}.pt")
    module = load_members(tmp_path, Net).build(1)
    assert module.body.weight.dtype == torch.bfloat16
    assert module.norm.num_batches_tracked.dtype == torch.int64


def test_the_model_may_be_a_text_with_arguments(tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\ndef make(width): return nn.Linear(width, 2)\n")
    torch.save(nn.Linear(5, 2).state_dict(), tmp_path / "m.pt")
    members = load_members([tmp_path / "m.pt"], "net.py:make", model_args={"width": 5}, base_dir=tmp_path)
    assert members.build(0).in_features == 5


class TiedNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, x):
        return self.head(self.emb(x))


def test_tied_weights_are_exact_whichever_names_the_file_holds(tmp_path):
    nets = [TiedNet() for _ in range(2)]
    torch.save(nets[0].state_dict(), tmp_path / "m0.pt")
    save_model(nets[1], str(tmp_path / "m1.safetensors"))  # leaves one of the two names out
    members = load_members(tmp_path, TiedNet)
    for index, net in enumerate(nets):
        module = members.build(index)
        assert module.head.weight is module.emb.weight
        assert torch.equal(module(torch.arange(5)), net(torch.arange(5)))


def test_averaged_models_load_with_a_warning(tmp_path):
    for index in range(2):
        averaged = torch.optim.swa_utils.AveragedModel(trained(index))
        torch.save(averaged.state_dict(), tmp_path / f"m{index}.pt")
    members = load_members(tmp_path, Net)
    assert members[0].stripped_prefix == "module."
    assert members.warnings == ("dropped 'n_averaged' from members 0 and 1: counters that 'Net' has not.",)
    assert torch.equal(members.build(1).head.weight, trained(1).head.weight)


# -- warnings ------------------------------------------------------------------------------------------


def test_the_same_file_twice_is_a_warning(runs):
    first = runs / "m0.pt"
    (runs / "link.pt").symlink_to("m0.pt")
    members = load_members([first, runs / "m1.pt", first, runs / "link.pt"])
    assert members.warnings == (f"members 0, 2 and 3 are the same file, {first}: it counts more than once.",)


def test_identical_weights_are_a_warning(runs):
    (runs / "m3.pt").write_bytes((runs / "m1.pt").read_bytes())
    assert load_members(runs).warnings == (
        "members 1 and 3 hold identical weights: leave all but one out, unless it is meant.",
    )


# -- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_nonfinite_weights_name_member_and_tensor(runs, value):
    net = trained(1)
    with torch.no_grad():
        net.head.bias[1] = value
    torch.save(net.state_dict(), runs / "m1.pt")
    with pytest.raises(NonFiniteWeightsError, match=r"member 1 \(.*m1\.pt\) holds NaN or Inf in 'head.bias'") as caught:
        load_members(runs, Net)
    assert caught.value.exit_code == 3
    assert caught.value.details == {"member_index": 1, "tensors": ["head.bias"]}
    members = load_members(runs, Net, allow_nonfinite=True)
    assert members.warnings == (f"member 1 ({runs / 'm1.pt'}) holds NaN or Inf in 'head.bias'.",)


@pytest.mark.parametrize("model", [None, Net], ids=["weights alone", "with the architecture"])
def test_members_that_differ_name_key_paths_and_values(runs, model):
    torch.save(trained(2, width=6).state_dict(), runs / "m2.pt")
    with pytest.raises(StackError, match=r"'body.weight': expected shape \(4, 3\) as in member 0 \(.*m0\.pt\), got"):
        load_members(runs, model)


def test_a_member_of_another_dtype_is_refused(runs):
    torch.save(trained(1).half().state_dict(), runs / "m1.pt")
    with pytest.raises(StackError, match=r"expected dtype float32 as in member 0 .*, got float16 in member 1"):
        load_members(runs, Net)


def test_checkpoints_of_another_architecture_are_refused(runs):
    with pytest.raises(StackError, match=r"do not fit the architecture 'Net': 'body.weight': expected shape \(9, 3\)"):
        load_members(runs, Net, model_args={"width": 9})
    with pytest.raises(StackError, match=r"'body.weight' is missing in the architecture, in member 0 \(.*m0.pt\)"):
        load_members(runs, lambda: nn.Linear(2, 2))


def test_untied_weights_in_a_tied_architecture_name_the_member(tmp_path):
    weight = torch.randn(5, 3)
    torch.save({"emb.weight": weight, "head.weight": weight}, tmp_path / "m0.pt")
    torch.save({"emb.weight": weight, "head.weight": -weight}, tmp_path / "m1.pt")
    with pytest.raises(StackError, match=r"'emb.weight' and 'head.weight' .* differ in member 1 \(.*m1\.pt\)"):
        load_members(tmp_path, TiedNet)


def test_an_architecture_that_no_checkpoint_describes_is_refused(tmp_path):
    class Random(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.register_buffer("noise", torch.randn(2), persistent=False)

    torch.save(Random().state_dict(), tmp_path / "m.pt")
    with pytest.raises(StackError, match=r"'noise' of .*Random' is in no state dict"):
        load_members(tmp_path, Random)


def test_a_model_that_does_not_take_its_own_state_names_the_member(tmp_path):
    class Picky(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)

        def _load_from_state_dict(self, *arguments):
            arguments[-1].append("too old")

    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "m.pt")
    members = load_members(tmp_path, Picky)
    with pytest.raises(StackError, match=r"cannot build member 0 \(.*m\.pt\) with '.*Picky': .*too old"):
        members.build(0)


@pytest.mark.parametrize("index", [3, -1])
def test_a_member_that_is_not_there_cannot_be_built(runs, index):
    with pytest.raises(UsageError, match=f"there is no member {index}: expected 0 to 2"):
        load_members(runs, Net).build(index)


def test_without_an_architecture_nothing_can_be_built(runs):
    with pytest.raises(UsageError, match="only weights were loaded, no architecture"):
        load_members(runs).build(0)
    with pytest.raises(UsageError, match=r"arguments \(width\) are given without a model"):
        load_members(runs, model_args={"width": 3})


def test_errors_of_the_earlier_stages_come_through(runs, tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        load_members(runs / "nowhere")
    with pytest.raises(NoCheckpointError, match="matches no checkpoint"):
        load_members(str(runs / "*.safetensors"))
    with pytest.raises(ArchitectureError, match="returned None"):
        load_members(runs, lambda: None)
    os.truncate(runs / "m1.pt", 100)
    with pytest.raises(CheckpointError, match=r"m1\.pt' is truncated"):
        load_members(runs, Net)


def save_timm(folder, nets, **changes):
    """As timm's train.py saves them."""
    for index, net in enumerate(nets):
        args = argparse.Namespace(model="net", num_classes=2, gp=None, bn_eps=None, model_kwargs={"width": 6}, lr=0.1)
        saved = {"epoch": 9, "arch": "net", "args": args, "state_dict": net.state_dict(), "metric": 0.5}
        torch.save(saved | (changes if index else {}), folder / f"fold{index}.pth.tar")
    return folder


class FakeTimm(types.ModuleType):
    @staticmethod
    def is_model(name):
        return name == "net"

    @staticmethod
    def list_models():
        return ["net"]

    @staticmethod
    def create_model(model_name, pretrained, *, num_classes, width):
        return Net(width)


def test_timm_checkpoints_say_themselves_what_they_are(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", FakeTimm("timm"))
    save_timm(tmp_path, [trained(seed, width=6) for seed in range(2)])
    members = load_members(tmp_path, "timm")
    assert members.architecture.name == "timm:net"
    assert members.architecture.model_args == {"num_classes": 2, "width": 6}
    x = torch.randn(5, 3)
    assert torch.equal(members.build(1)(x), trained(1, width=6)(x))


def test_typed_arguments_win_over_the_checkpoints_own(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", FakeTimm("timm"))
    save_timm(tmp_path, [trained(0, width=6)])
    with pytest.raises(StackError, match=r"expected shape \(8, 3\) as in the architecture, got \(6, 3\)"):
        load_members(tmp_path, "timm", model_args={"width": 8})


def test_what_checkpoints_say_counts_only_where_it_is_asked_for(tmp_path):
    save_timm(tmp_path, [trained(seed) for seed in range(2)], arch="another")
    assert len(load_members(tmp_path, Net)) == 2
    with pytest.raises(StackError, match=r"cannot stack 'net' \(.*\) \(member 0 .*\) with 'another' \(.*\) \(member 1"):
        load_members(tmp_path, "timm")


def test_checkpoints_that_do_not_say_what_they_are(runs):
    with pytest.raises(ArchitectureError, match=r"member 0 \(.*m0.pt\) does not say what its architecture is"):
        load_members(runs, "timm")
