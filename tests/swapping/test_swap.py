"""A swapped file is the file that packing the new set of checkpoints writes, byte for byte."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
import torch

import ensexport
from ensexport import pipeline
from ensexport.runtime import open_runners, read_metadata
from ensexport.swapping.contents import read_contents
from ensexport.swapping.run import swap
from ensexport.targets import onnx as onnx_target
from ensexport.targets.onnx_file import lay_out
from ensexport.targets.torch_archive import read_records
from tests.swapping.nets import NETS, Net

_DEFAULT = {"mlp", "one-member", "float16", "transformer", "buffers", "filling", "clashing", "complex"}
_NAMES = [pytest.param(name, marks=() if name in _DEFAULT else (pytest.mark.slow,), id=name) for name in NETS]
QUICK = {"batches": (2,), "seeds": (0,)}


def _pack(net: Net, folder: Path, outputs: list[Path]) -> None:
    members = ensexport.load_members(folder, model=net.build)
    ensexport.export(members, outputs, inputs=net.inputs, **QUICK, **net.options)


def _folders(net: Net, tmp_path: Path) -> tuple[Path, Path, int]:
    """The checkpoints before, and after the last but one was trained anew."""
    before, after, member = tmp_path / "before", tmp_path / "after", max(net.n_members - 2, 0)
    for index in range(net.n_members):
        net.save(before / f"s{index}.pt", index)
    shutil.copytree(before, after)
    net.save(after / f"s{member}.pt", 99)
    return before, after, member


def _assert_packed(out: Path, new: Path) -> None:
    """Is a file what packing wrote? TorchScript numbers the classes of a process, so that code differs in the second.

    tests/cli/test_swap.py compares whole files, each packed in a process of its own.
    """
    if out.suffix != ".ts":
        assert out.read_bytes() == new.read_bytes(), out.suffix
        return
    with zipfile.ZipFile(out) as one, zipfile.ZipFile(new) as other:
        assert one.testzip() is None
        for name in one.namelist():
            if name.startswith(("archive/data/", "archive/extra/", "archive/constants.pkl", "archive/version")):
                assert one.read(name) == other.read(name), name


def _elsewhere(path: Path, member: int) -> list[bytes]:
    """All bytes of a file but for one member's ranges, the metadata, and what an archive says of its records."""
    contents = read_contents(path)
    data = bytearray(path.read_bytes())
    for weight in contents.recipe.program.packed:
        place = weight.place(member)
        if place is not None:
            size = torch.Size(weight.piece_shape).numel() * weight.dtype.itemsize
            begin = contents.spans[weight.name].offset + place
            data[begin : begin + size] = bytes(size)
    if contents.places is not None:
        return [bytes(data[: contents.places.graph_end])]
    records = [record for record in read_records(path) if not record.name.endswith(("ensexport.json", "_id"))]
    return [bytes(data[record.begin : record.begin + record.n_stored]) for record in records]


@pytest.mark.parametrize("name", _NAMES)
def test_a_swapped_file_is_the_packed_one(tmp_path: Path, name: str) -> None:
    net = NETS[name]
    before, after, member = _folders(net, tmp_path)
    suffixes = (".onnx", ".ts", ".pt2")
    _pack(net, before, [tmp_path / f"old{suffix}" for suffix in suffixes])
    _pack(net, after, [tmp_path / f"new{suffix}" for suffix in suffixes])
    for suffix in suffixes:
        old, new, out = (tmp_path / f"{stem}{suffix}" for stem in ("old", "new", "out"))
        report = swap(old, member, after / f"s{member}.pt", out, model=net.build)
        _assert_packed(out, new)
        assert old.read_bytes() != new.read_bytes()
        assert {check.member_index for check in report.swapped.validation.checks} >= {member}
        back = tmp_path / f"back{suffix}"
        swap(out, member, before / f"s{member}.pt", back, model=net.build)
        assert back.read_bytes() == old.read_bytes(), f"{suffix}: the first checkpoint again gives the first file again"


def test_chunks_of_members_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "chunks_of", lambda source: 2)
    net = NETS["mlp"]
    before, after, member = _folders(net, tmp_path)
    _pack(net, before, [tmp_path / "old.onnx", tmp_path / "old.ts"])
    _pack(net, after, [tmp_path / "new.onnx", tmp_path / "new.ts"])
    assert b"_members_1_to_2" in (tmp_path / "old.onnx").read_bytes()
    for suffix in (".onnx", ".ts"):
        swap(tmp_path / f"old{suffix}", member, after / f"s{member}.pt", tmp_path / f"out{suffix}", model=net.build)
        _assert_packed(tmp_path / f"out{suffix}", tmp_path / f"new{suffix}")


def test_layers_that_run_once_a_member_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs where that is faster, layers are written once a member, each with its own weights."""
    from ensexport.batching.placement import HEAVY

    def apart(*args: object, **options: object) -> dict[str, object]:
        return {"strategy": "auto", "placement": lambda site: frozenset(n for n in site.heavy if n.target in HEAVY)}

    monkeypatch.setattr(pipeline, "graph_options", apart)
    net = NETS["conv"]
    before, after, member = _folders(net, tmp_path)
    _pack(net, before, [tmp_path / "old.onnx"])
    _pack(net, after, [tmp_path / "new.onnx"])
    assert b"_member_1" in (tmp_path / "old.onnx").read_bytes()
    swap(tmp_path / "old.onnx", member, after / f"s{member}.pt", tmp_path / "out.onnx", model=net.build)
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "new.onnx").read_bytes()


def test_external_data_gets_the_new_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        onnx_target, "lay_out", lambda model, weights, name, **_: lay_out(model, weights, name, max_bytes=64)
    )
    net = NETS["conv"]
    before, after, member = _folders(net, tmp_path)
    _pack(net, before, [tmp_path / "old.onnx"])
    (tmp_path / "packed").mkdir()
    _pack(net, after, [tmp_path / "packed" / "out.onnx"])
    report = swap(tmp_path / "old.onnx", member, after / f"s{member}.pt", tmp_path / "out.onnx", model=net.build)
    for name in ("out.onnx", "out.onnx.data"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "packed" / name).read_bytes()
    assert [(Path(a.path).name, a.format) for a in report.artifacts] == [
        ("out.onnx", "onnx"),
        ("out.onnx.data", "onnx_data"),
    ]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`old.onnx` and `old.ts` of three MLPs, and their checkpoints."""
    folder = tmp_path_factory.mktemp("packed")
    before, _, _ = _folders(NETS["mlp"], folder)
    _pack(NETS["mlp"], before, [folder / "old.onnx", folder / "old.ts"])
    return folder


@pytest.mark.parametrize("suffix", [".onnx", ".ts"])
@pytest.mark.parametrize("member", [0, 1, 2])
def test_only_the_member_changes(tmp_path: Path, packed: Path, suffix: str, member: int) -> None:
    """The other members' outputs keep every bit, and nothing but the member's ranges and the metadata is touched."""
    old, out = packed / f"old{suffix}", tmp_path / f"out{suffix}"
    shutil.copy(packed / "after" / "s1.pt", tmp_path / "z1.pt")
    swap(old, member, tmp_path / "z1.pt", out, model=NETS["mlp"].build)
    names = [record["name"] for record in read_metadata(out)["members"]]
    assert names == ["z1.pt" if index == member else f"s{index}.pt" for index in range(3)]
    assert _elsewhere(old, member) == _elsewhere(out, member)
    assert _elsewhere(old, (member + 1) % 3) != _elsewhere(out, (member + 1) % 3)
    x = {"x": torch.randn(5, 4).numpy()}
    before, after = (next(iter(open_runners(path, output_names=("output",)))).run(x)["output"] for path in (old, out))
    for index in range(3):
        assert (before[index] == after[index]).all() == (index != member)


def test_the_report_names_the_old_and_the_new(tmp_path: Path, packed: Path) -> None:
    out = tmp_path / "out.onnx"
    report = swap(packed / "old.onnx", 1, packed / "after" / "s1.pt", out, model=NETS["mlp"].build).to_dict()
    old, new = read_metadata(packed / "old.onnx")["members"][1], read_metadata(out)["members"][1]
    member = report["member"]
    assert (member["index"], member["name"], member["sha256"]) == (1, "s1.pt", new["sha256"])
    assert member["replaced"] == {name: old[name] for name in ("name", "sha256", "weights_sha256")}
    assert report["validation"]["members"] == [1]
    assert report["artifacts"][0]["path"] == str(out)
    assert {"read", "load", "weights", "validate", "digest", "write"} <= set(report["timings_s"])


def test_a_swapped_file_is_valid_with_the_new_checkpoints(tmp_path: Path, packed: Path) -> None:
    out = tmp_path / "out.onnx"
    swap(packed / "old.onnx", 1, packed / "after" / "s1.pt", out, model=NETS["mlp"].build)
    members = ensexport.load_members(packed / "after", model=NETS["mlp"].build)
    assert ensexport.validate(out, members, **QUICK).passed


def test_a_file_may_take_its_own_place(tmp_path: Path, packed: Path) -> None:
    path = tmp_path / "e.onnx"
    shutil.copy(packed / "old.onnx", path)
    swap(path, 1, packed / "after" / "s1.pt", tmp_path / "out.onnx", model=NETS["mlp"].build)
    swap(path, 1, packed / "after" / "s1.pt", path, model=NETS["mlp"].build, force=True)
    assert path.read_bytes() == (tmp_path / "out.onnx").read_bytes()


def test_equal_weights_twice_are_told(tmp_path: Path, packed: Path) -> None:
    report = swap(packed / "old.onnx", 1, packed / "before" / "s2.pt", tmp_path / "out.onnx", model=NETS["mlp"].build)
    assert "members 1 and 2 hold identical weights now." in report.swapped.warnings


def test_names_have_as_many_folders_as_the_others(tmp_path: Path) -> None:
    net = NETS["mlp"]
    for index in range(2):
        net.save(tmp_path / f"fold_{index}" / "model.pt", index)
    net.save(tmp_path / "fold_7" / "model.pt", 7)
    paths = [tmp_path / f"fold_{index}" / "model.pt" for index in range(2)]
    members = ensexport.load_members(paths, model=net.build)
    ensexport.export(members, tmp_path / "e.ts", inputs=net.inputs, **QUICK)
    swap(tmp_path / "e.ts", 0, tmp_path / "fold_7" / "model.pt", tmp_path / "out.ts", model=net.build)
    names = [record["name"] for record in read_metadata(tmp_path / "out.ts")["members"]]
    assert names == ["fold_7/model.pt", "fold_1/model.pt"]


def test_a_checkpoint_in_16_bits_goes_into_a_file_of_members_in_32(tmp_path: Path) -> None:
    """`pack --dtype` takes members that were saved in different dtypes, and so does a file that it made."""
    net = NETS["bfloat16"]
    before, after, member = _folders(net, tmp_path)
    path = after / f"s{member}.pt"
    state = torch.load(path, weights_only=True)
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, path)
    _pack(net, before, [tmp_path / "old.onnx"])
    members = ensexport.load_members(after, model=net.build, any_float=True)
    ensexport.export(members, tmp_path / "new.onnx", inputs=net.inputs, **QUICK, **net.options)
    swap(tmp_path / "old.onnx", member, path, tmp_path / "out.onnx", model=net.build)
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "new.onnx").read_bytes()


def test_a_model_that_changes_the_folder_moves_nothing(
    tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(packed, tmp_path / "own"))

    def build() -> torch.nn.Module:
        monkeypatch.chdir(tmp_path)
        return NETS["mlp"].build()

    swap("old.onnx", 1, "after/s1.pt", "out.onnx", model=build)
    assert (tmp_path / "own" / "out.onnx").exists()
