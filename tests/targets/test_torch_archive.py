"""Archives that torch wrote, rewritten record by record, and what is refused of those that anybody may have made."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ensexport.batching.engine import BatchedGraph
from ensexport.errors import ArtifactError
from ensexport.targets import torch_archive
from ensexport.targets.pt2 import pt2_bytes
from ensexport.targets.torch_archive import read_records, record_start, rewrite_archive
from ensexport.targets.torch_places import find_slots, script_name
from ensexport.targets.torchscript import torchscript_bytes
from tests.batching.runs import batched
from tests.batching.table import TABLE, make_member

TEXT = "ensexport.json"


@pytest.fixture(scope="module")
def graph() -> tuple[BatchedGraph, dict[str, torch.Tensor]]:
    return batched([make_member(TABLE["mlp"], seed) for seed in range(3)], *TABLE["mlp"].inputs)


@pytest.fixture(params=[".ts", ".pt2"])
def archive(
    request: pytest.FixtureRequest, tmp_path: Path, graph: tuple[BatchedGraph, dict[str, torch.Tensor]]
) -> Path:
    make = torchscript_bytes if request.param == ".ts" else pt2_bytes
    path = tmp_path / f"e{request.param}"
    path.write_bytes(make(*graph, {TEXT: '{"a": 1}'}))
    return path


def test_rewritten_with_nothing_changed_it_is_the_same(archive: Path) -> None:
    copy = archive.with_name(f"copy{archive.suffix}")
    rewrite_archive(archive, copy, {}, {})
    assert copy.read_bytes() == archive.read_bytes()


def test_a_text_of_another_length_gives_the_bytes_that_torch_writes(
    archive: Path, graph: tuple[BatchedGraph, dict[str, torch.Tensor]]
) -> None:
    text = '{"a": "' + "longer" * 99 + '"}'
    copy = archive.with_name(f"copy{archive.suffix}")
    rewrite_archive(archive, copy, {}, {f"extra/{TEXT}": text.encode()})
    with zipfile.ZipFile(copy) as one:
        assert one.testzip() is None
        assert one.read(f"archive/extra/{TEXT}").decode() == text
    if archive.suffix == ".pt2":  # TorchScript numbers the classes of a process
        assert copy.read_bytes() == pt2_bytes(*graph, {TEXT: text})


@pytest.mark.parametrize("by_torch", [False, True], ids=["copied", "by-torch"])
def test_weights_are_found_and_changed(
    archive: Path,
    graph: tuple[BatchedGraph, dict[str, torch.Tensor]],
    by_torch: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An archive beyond what the small form of zip files can hold is written by torch's own writer."""
    monkeypatch.setattr(torch_archive, "_MAX_BYTES", 0 if by_torch else 2**32)
    batched_graph, weights = graph
    names = [weight.name for weight in batched_graph.weights.packed]
    slots = find_slots(archive, names)
    starts = record_start(archive)
    for name in names:
        begin = starts[slots[name].record] + slots[name].offset
        data = archive.read_bytes()[begin : begin + slots[name].n_bytes]
        assert data == weights[name].numpy().tobytes()
    values = np.arange(6, dtype=np.float32)
    slot = slots[names[1]]
    copy = archive.with_name(f"copy{archive.suffix}")
    rewrite_archive(archive, copy, {slot.record: [(slot.offset + 8, values.data.cast("B"))]}, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if archive.suffix == ".ts":
            loaded = dict(torch.jit.load(str(copy)).named_buffers())
            own = {name: loaded[script_name(index, name)] for index, name in enumerate(names)}
        else:
            own = dict(torch.export.load(str(copy)).state_dict)
    expected = {name: tensor.clone() for name, tensor in weights.items()}
    expected[names[1]].view(-1)[2:8] = torch.from_numpy(values)
    assert all(torch.equal(own[name], expected[name]) for name in names)


def test_a_chunk_ends_within_what_is_written(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = max(read_records(archive), key=lambda record: record.n_bytes * (record.method == 0))
    values = bytes(range(50))
    copies = [archive.with_name(f"{name}{archive.suffix}") for name in ("one", "other")]
    rewrite_archive(archive, copies[0], {record.name: [(13, memoryview(values))]}, {})
    monkeypatch.setattr(torch_archive, "_CHUNK_BYTES", 7)
    rewrite_archive(archive, copies[1], {record.name: [(13, memoryview(values))]}, {})
    assert copies[0].read_bytes() == copies[1].read_bytes()
    assert values in copies[0].read_bytes()


def test_a_cut_off_archive_is_refused(archive: Path) -> None:
    whole = archive.read_bytes()
    for length in range(0, len(whole), 97):
        archive.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="cannot read"):
            read_records(archive)


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_are_refused_or_copied(archive: Path, seed: int) -> None:
    whole, random = archive.read_bytes(), np.random.default_rng(seed)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            damaged[place] = random.integers(0, 256)
        archive.write_bytes(damaged)
        try:
            find_slots(archive, ["0.weight"])
        except ArtifactError:
            continue


def test_a_weight_that_is_missing_is_named(archive: Path) -> None:
    with pytest.raises(ArtifactError, match="it lacks the weight 'nothing'"):
        find_slots(archive, ["nothing"])


def _script(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "e.ts"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(8))
    return path


class _Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("code ran",)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(pickle.dumps(_Runs()), id="calls-a-function"),
        pytest.param(b"cos\nsystem\n(S'true'\ntR.", id="os-system"),
        pytest.param(b"cbuiltins\neval\n(S'1'\ntR.", id="eval"),
        pytest.param(b"ctorch\nload\n(S'x'\ntR.", id="torch-load"),
        pytest.param(b"ctorch._utils\n_rebuild_tensor_v2\n(tR.", id="no-arguments"),
        pytest.param(b"ctorch\nFloatStorage\n(tR.", id="makes-a-storage"),
        pytest.param(b"S'x'\nQ.", id="no-storage"),
        pytest.param(b"(t.", id="nothing"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\x80\x02}", id="no-end"),
    ],
)
def test_a_pickle_that_asks_for_more_than_tensors_is_refused(
    tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArtifactError, match=r"its weights cannot be found|it lacks the weight"):
        find_slots(_script(tmp_path, data), ["0.weight"])
    assert capsys.readouterr().out == ""


def test_a_weight_beyond_its_record_is_refused(tmp_path: Path) -> None:
    storage = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI2\ntQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"I0\n(I3\nt(I1\ntI00\nNtR"
    data = b"c__torch__\nNet\n)\x81}S'weight_0_a'\n" + tensor + b"sb."
    with pytest.raises(ArtifactError, match="it lacks the weight 'a'"):
        find_slots(_script(tmp_path, data), ["a"])
    assert find_slots(_script(tmp_path, data.replace(b"(I3\nt", b"(I2\nt")), ["a"])["a"].n_bytes == 8


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.ts").write_bytes(struct.pack("<4s", b"PK\3\4") + bytes(100))
    with pytest.raises(ArtifactError, match=r"cannot read '.*e\.ts' as an archive"):
        read_records(tmp_path / "e.ts")


@pytest.mark.parametrize("suffix", [".ts", ".pt2"])
def test_an_archive_without_a_description_of_its_weights_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"e{suffix}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/version", "3")
    with pytest.raises(ArtifactError, match=r"it has no record '(data\.pkl|data/weights/model_weights_config\.json)'"):
        find_slots(path, ["a"])


def test_a_record_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.ts"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("archive/data.pkl", "1")
        archive.writestr("archive/data.pkl", "2")
    with pytest.raises(ArtifactError, match=r"its record 'data\.pkl' is damaged"):
        read_records(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("use_pickle", True), ("path_name", "../../x")],
    ids=["pickled", "elsewhere"],
)
def test_a_weight_that_is_no_plain_record_is_refused(tmp_path: Path, name: str, value: object) -> None:
    meta = {"dtype": 7, "sizes": [{"as_int": 2}], "strides": [{"as_int": 1}], "storage_offset": {"as_int": 0}}
    entry = {"path_name": "weight_0", "use_pickle": False, "tensor_meta": meta, name: value}
    path = tmp_path / "e.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/weights/model_weights_config.json", json.dumps({"config": {"a": entry}}))
        archive.writestr("archive/data/weights/weight_0", bytes(8))
    with pytest.raises(ArtifactError, match=r"'a' is not kept as plain bytes|it lacks the weight 'a'"):
        find_slots(path, ["a"])
