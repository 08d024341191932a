"""What large ensembles need: one member in memory, files that may change meanwhile, external data, chunks, a choice."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import ensexport
from ensexport.choice import parse_choice
from ensexport.errors import CheckpointError, MismatchError, UsageError
from ensexport.members import Members, load_members
from ensexport.packing import pack
from ensexport.runtime import read_metadata
from ensexport.targets import onnx_file
from ensexport.validation import validate

INPUTS = ["x:float32[batch,6]"]
N_MEMBERS = 4


class Net(nn.Module):
    """Refers to itself in a circle, so that Python does not drop it by counting references."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 300), nn.BatchNorm1d(300), nn.ReLU(), nn.Linear(300, 3))
        self.circle = [self.forward]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def _net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = Net()
    net.body[1].running_mean.normal_()
    return net


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "ckpts"
    path.mkdir()
    for seed in range(N_MEMBERS):
        torch.save(_net(seed).state_dict(), path / f"m{seed}.pt")
    return path


def _watched(members: Members) -> tuple[Members, list[int]]:
    """Members that note, whenever one is read, how many of the tensors read before are still there."""
    alive: list[weakref.ref[torch.Tensor]] = []
    counts: list[int] = []

    def watch(read: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        counts.append(sum(ref() is not None for ref in alive))
        state = read()
        alive.extend(weakref.ref(tensor) for tensor in state.values())
        return state

    watched = [replace(member, read=lambda read=member.read: watch(read)) for member in members]
    return Members(watched, architecture=members.architecture, equal=members.equal), counts


@pytest.mark.parametrize("name", ["e.onnx", "e.ts", "e.pt2"])
def test_one_member_is_in_memory_at_a_time(folder: Path, tmp_path: Path, name: str) -> None:
    members, counts = _watched(load_members(folder, Net))
    ensexport.export(members, tmp_path / name, inputs=INPUTS, batches=(2,), seeds=(0,))
    assert len(counts) >= 2 * N_MEMBERS  # to be written, and to be compared
    assert set(counts) == {0}


def test_files_of_one_member_or_all_in_one_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    states = [torch.load(folder / f"m{seed}.pt") for seed in range(N_MEMBERS)]
    torch.save({f"{k}.{name}": t for k, state in enumerate(states) for name, t in state.items()}, tmp_path / "all.pt")
    live = ensexport.stack([_net(seed) for seed in range(N_MEMBERS)])
    sources = [load_members(folder, Net), load_members(tmp_path / "all.pt", Net), live]
    initializers = []
    for number, source in enumerate(sources):
        path = tmp_path / f"e{number}.onnx"
        ensexport.export(source, path, inputs=INPUTS, batches=(2,), seeds=(0,))
        initializers.append([t.SerializeToString() for t in onnx.load(path).graph.initializer])
    assert initializers[0] == initializers[1] == initializers[2]


def test_a_checkpoint_that_changes_after_it_was_read_is_refused(folder: Path, tmp_path: Path) -> None:
    def change(_estimate: object) -> None:
        torch.save(_net(99).state_dict(), folder / "m2.pt")

    with pytest.raises(CheckpointError, match=r"m2\.pt' changed while it was read"):
        pack([folder], [tmp_path / "e.onnx"], model=Net, inputs=INPUTS, on_estimate=change)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpts"]


def test_a_frozen_part_counts_once_in_the_estimate(folder: Path, tmp_path: Path) -> None:
    first = torch.load(folder / "m0.pt")
    for path in folder.iterdir():
        torch.save(torch.load(path) | {name: t for name, t in first.items() if name != "body.3.weight"}, path)
    report = pack([folder], [tmp_path / "e.onnx"], model=Net, inputs=INPUTS).to_dict()
    assert report["estimate"]["disk_bytes"] < 1.5 * report["artifacts"][0]["size_bytes"]


def test_a_model_may_change_the_current_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def wandering() -> nn.Module:
        monkeypatch.chdir(tmp_path / "elsewhere")
        return Net()

    report = pack(["ckpts"], ["e.onnx"], model=wandering, inputs=INPUTS)
    assert [Path(member.path) for member in report.members] == [Path(f"ckpts/m{k}.pt") for k in range(N_MEMBERS)]
    assert (tmp_path / "e.onnx").exists()


def test_above_the_limit_the_weights_lie_beside_the_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "MAX_IN_FILE_BYTES", 1000)
    targets = [tmp_path / "e.onnx", tmp_path / "e.ts", tmp_path / "e.pt2"]
    report = pack([folder], targets, model=Net, inputs=INPUTS)
    assert report.export is not None
    assert [(Path(a.path).name, a.format) for a in report.export.artifacts] == [
        ("e.onnx", "onnx"),
        ("e.ts", "torchscript"),
        ("e.pt2", "pt2"),
        ("e.onnx.data", "onnx_data"),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpts", "e.onnx", "e.onnx.data", "e.pt2", "e.ts"]
    onnx.checker.check_model(str(targets[0]))
    for target in targets:
        assert validate(target, load_members(folder, Net), batches=(3,), seeds=(0,)).passed


def test_members_run_in_groups_where_their_activations_would_not_fit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensexport.source._MAX_CHUNK_BYTES", 3 * 2 * 4 * 600)  # two members' activations at batch 1
    pack([folder], [tmp_path / "e.onnx"], model=Net, inputs=INPUTS)
    names = {tensor.name for tensor in onnx.load(tmp_path / "e.onnx").graph.initializer}
    assert {name.partition("_members_")[2] for name in names if "weight" in name} == {"0_to_1", "2_to_3"}


def test_what_was_compared_is_said_everywhere(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "e.onnx"
    report = pack([folder], [path], model=Net, inputs=INPUTS, choice=parse_choice("first,last")).to_dict()
    assert report["validation"]["members"] == [0, 3]
    assert {check["member_index"] for check in report["validation"]["checks"]} == {0, 3}
    assert report["validation"]["passed"] is True
    assert any("only 2 of 4 members (0, 3) were compared" in text for text in report["warnings"])
    assert read_metadata(path)["validated_members"] == [0, 3]


def test_nothing_compared_is_no_proof(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "e.onnx"
    report = pack([folder], [path], model=Net, inputs=INPUTS, choice=parse_choice("none")).to_dict()
    assert report["validation"]["passed"] is None
    assert report["validation"]["checks"] == []
    assert any("nothing was compared with the loop" in text for text in report["warnings"])
    assert read_metadata(path)["validated_members"] == []
    members = load_members(folder, Net)
    assert validate(path, members).passed
    with pytest.raises(UsageError, match="no member is chosen"):
        validate(path, members, choice=parse_choice("none"))


def test_a_wrong_member_is_found_if_it_is_among_the_chosen(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "e.onnx"
    pack([folder], [path], model=Net, inputs=INPUTS)
    torch.save(_net(99).state_dict(), folder / "m3.pt")
    members = load_members(folder, Net)
    with pytest.raises(MismatchError, match="member 3 ") as found:
        validate(path, members, choice=parse_choice("last"), batches=(2,), seeds=(0,))
    assert found.value.details["member_index"] == 3
    # Not among them, its digest still tells.
    with pytest.raises(MismatchError, match=r"member 3 .* is not the network"):
        validate(path, members, choice=parse_choice("first"), batches=(2,), seeds=(0,))


def test_time_and_memory_of_every_stage_are_reported(folder: Path, tmp_path: Path) -> None:
    calls = []
    report = pack(
        [folder], [tmp_path / "e.onnx"], model=Net, inputs=INPUTS, on_stage=lambda *call: calls.append(call)
    ).to_dict()
    stages = ["load", "capture", "batch", "export_onnx", "weights", "validate", "digest", "write"]
    assert list(report["timings_s"]) == stages
    assert set(report["peak_memory_mb"]) <= set(stages)
    written = [(done, total) for stage, done, total in calls if stage == "weights"][-1]
    held = sum(len(tensor.raw_data) for tensor in onnx.load(tmp_path / "e.onnx").graph.initializer)
    assert written == (held, held)
    sizes = sum(path.stat().st_size for path in folder.iterdir())
    assert ("load", sizes, sizes) in calls
