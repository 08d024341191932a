import hashlib
import io
import os
import pickle
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as torch_dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from ensexport.errors import CheckpointError, IncompleteCheckpointError, UnsafeCheckpointError
from ensexport.members import dcp, dcp_metadata
from ensexport.members.dcp import load_dcp

DATA = "__0_0.distcp"


class Canary:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def save(state, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it saves from one process
        torch_dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def record_of(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def write(folder, tensors, *, change=None, file=DATA, records=None):
    """Write a table with torch's own classes. `tensors`: name -> `(tensor, boxes)`, a box is `(offsets, sizes)`."""
    folder.mkdir(exist_ok=True)
    data, entries, storage = b"", {}, {}
    for name, (tensor, boxes) in tensors.items():
        chunks = []
        for offsets, sizes in boxes:
            part = tensor[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))].clone()
            record = (records or {}).get(name) or record_of(part)
            storage[MetadataIndex(name, offsets)] = _StorageInfo(file, len(data), len(record))
            chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            data += record
        entries[name] = TensorStorageMetadata(TensorProperties(tensor.dtype), tensor.size(), chunks)
    metadata = Metadata(entries, storage_data=storage)
    if change:
        change(metadata)
    (folder / DATA).write_bytes(data)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def whole(tensor):
    return tensor, [((0,) * tensor.ndim, tuple(tensor.shape))]


# -- what is read ----------------------------------------------------------------------------------


def test_what_torch_saved_is_read_as_it_was_nested(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "extra": [torch.ones(2)]}
    folder = save(state, tmp_path / "d")
    found = load_dcp(folder)
    assert list(found.content) == ["model", "extra"]
    assert list(found.content["model"]) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.content["model"][name], tensor)
        assert found.content["model"][name].dtype == tensor.dtype
    assert torch.equal(found.content["extra"]["0"], torch.ones(2))
    assert found.format == "dcp"
    assert found.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in (".metadata", DATA)]
    assert found.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64]
)
def test_every_dtype_and_a_scalar_are_read(tmp_path, dtype):
    state = {"w": torch.ones(3, 2).to(dtype), "s": torch.tensor(1).to(dtype), "none": torch.empty(0, 3, dtype=dtype)}
    found = load_dcp(save(state, tmp_path / "d")).content
    assert all(torch.equal(found[name], state[name]) and found[name].dtype == dtype for name in state)


def test_the_parts_of_a_tensor_are_put_together(tmp_path):
    tensor = torch.randn(5, 4)
    boxes = [((0, 0), (2, 4)), ((2, 0), (3, 1)), ((2, 1), (3, 3)), ((5, 0), (0, 4))]
    assert torch.equal(load_dcp(write(tmp_path, {"w": (tensor, boxes)})).content["w"], tensor)


@pytest.mark.parametrize(
    ("state", "left"),
    [
        ({"app": {"model": {"w": torch.ones(1)}, "optim": {"w": torch.ones(2)}}}, {"app": {"model": {"w": 1}}}),
        (
            {"model": {"optim.weight": torch.ones(1)}, "optimizer_0": {"w": torch.ones(2)}},
            {"model": {"optim.weight": 1}},
        ),
        ({"w": torch.ones(1), "optimizer.state.w.exp_avg": torch.ones(2)}, {"w": 1}),
        ({"optimism": {"w": torch.ones(1)}, "optimizer_states": [{"w": torch.ones(2)}]}, {"optimism": {"w": 1}}),
    ],
    ids=["nested", "numbered", "flat", "plural"],
)
def test_the_optimizers_tensors_are_left_out(tmp_path, state, left):
    def sizes(value):
        return {k: sizes(v) for k, v in value.items()} if isinstance(value, dict) else value.numel()

    assert sizes(load_dcp(save(state, tmp_path / "d")).content) == left


SHARDED = """
    import sys
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.fsdp import fully_shard

    rank, folder = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 1))
    if rank == 0:
        torch.save(model.state_dict(), f"{folder}/whole.pt")
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (2,)))
    dcp.save({"model": model.state_dict()}, checkpoint_id=f"{folder}/sharded")
    dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of torch has no gloo")
def test_what_two_ranks_of_fsdp_saved_is_read(tmp_path):
    (tmp_path / "train.py").write_text(textwrap.dedent(SHARDED))
    ranks = [subprocess.Popen([sys.executable, "train.py", str(rank), str(tmp_path)], cwd=tmp_path) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    expected = torch.load(tmp_path / "whole.pt", weights_only=True)
    found = load_dcp(tmp_path / "sharded").content["model"]
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(list((tmp_path / "sharded").glob("*.distcp"))) == 2


# -- what asks for code ----------------------------------------------------------------------------


def test_a_table_that_asks_for_code_is_refused_and_all_it_asks_for_is_named(tmp_path):
    canary = tmp_path / "canary"
    write(
        tmp_path / "d", {"w": whole(torch.ones(2))}, change=lambda m: setattr(m, "planner_data", [Canary(canary), eval])
    )
    with pytest.raises(
        UnsafeCheckpointError, match=r"\.metadata': it asks to run posix\.system, builtins\.eval;"
    ) as caught:
        load_dcp(tmp_path / "d")
    assert caught.value.details["blocked"] == ["posix.system", "builtins.eval"]
    assert caught.value.exit_code == 3
    assert not canary.exists()


@pytest.mark.parametrize(
    ("pickled", "name"),
    [
        (b"\x80\x04\x8c\x25torch.distributed.checkpoint.metadata\x8c\x11Metadata.__init__\x93.", "Metadata.__init__"),
        (b"ctorch\nload\n.", "torch.load"),
        (b"ctorch.nn\nLinear\n.", "torch.nn.Linear"),
        (b"\x80\x04Pwhatever\n.", "persistent_load"),
    ],
    ids=["a dotted name", "a function of torch", "a module", "a persistent id"],
)
def test_a_table_may_name_nothing_else(tmp_path, pickled, name):
    write(tmp_path, {"w": whole(torch.ones(2))})
    (tmp_path / ".metadata").write_bytes(pickled)
    with pytest.raises(UnsafeCheckpointError, match=rf"\.metadata': it asks to run \S*{re.escape(name)}; the table"):
        load_dcp(tmp_path)


def test_an_entry_that_is_no_tensor_is_never_opened(tmp_path):
    canary = tmp_path / "canary"
    folder = save({"model": {"w": torch.ones(2)}, "hook": Canary(canary)}, tmp_path / "d")
    assert not canary.exists()
    assert load_dcp(folder).content.keys() == {"model"}
    assert not canary.exists()


def test_a_record_that_asks_for_code_is_refused(tmp_path):
    canary = tmp_path / "canary"
    record = record_of({"w": Canary(canary)})
    folder = write(tmp_path / "d", {"w": whole(torch.ones(2))}, records={"w": record})
    with pytest.raises(UnsafeCheckpointError, match=r"__0_0\.distcp \(tensor 'w'\).*it asks to run posix\.system"):
        load_dcp(folder)
    assert not canary.exists()


def test_a_record_that_is_a_program_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(2),)), buffer)
    folder = write(tmp_path, {"w": whole(torch.ones(1))}, records={"w": buffer.getvalue()})
    with pytest.raises(UnsafeCheckpointError, match=r"\(tensor 'w'\).*torch\.export"):
        load_dcp(folder)


def test_an_environment_that_switches_safety_off_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UnsafeCheckpointError, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set"):
        load_dcp(save({"w": torch.ones(1)}, tmp_path / "d"))


# -- what is damaged or lies -----------------------------------------------------------------------


def test_a_missing_file_is_refused(tmp_path):
    folder = save({"w": torch.ones(1)}, tmp_path / "d")
    (folder / DATA).unlink()
    with pytest.raises(IncompleteCheckpointError, match=rf"\.metadata' names '{DATA}', which is not there"):
        load_dcp(folder)
    (folder / ".metadata").unlink()
    with pytest.raises(IncompleteCheckpointError, match=r"names '\.metadata', which is not there"):
        load_dcp(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd"])
def test_a_file_elsewhere_is_refused(tmp_path, name):
    (tmp_path / "secret").write_bytes(b"x" * 9999)
    folder = write(tmp_path / "d", {"w": whole(torch.ones(1))}, file=name)
    with pytest.raises(CheckpointError, match=rf"\.metadata' names '{name}': expected the plain name"):
        load_dcp(folder)


def test_a_pipe_is_refused(tmp_path):
    folder = write(tmp_path, {"w": whole(torch.ones(1))})
    (folder / DATA).unlink()
    os.mkfifo(folder / DATA)
    with pytest.raises(CheckpointError, match=rf"{DATA}': it is not a regular file"):
        load_dcp(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_refused(tmp_path):
    folder = write(tmp_path, {"w": whole(torch.ones(1))})
    (folder / DATA).chmod(0)
    with pytest.raises(CheckpointError, match=rf"{DATA}': Permission denied"):
        load_dcp(folder)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read")
def test_a_read_error_is_refused(tmp_path, monkeypatch):
    folder = write(tmp_path, {"w": whole(torch.ones(1))})
    (folder / DATA).unlink()
    (folder / DATA).symlink_to("/proc/self/mem")
    monkeypatch.setattr(dcp, "neighbour", lambda folder, name, **_: folder / name)
    with pytest.raises(CheckpointError, match=r"cannot read .*: Input/output error"):
        load_dcp(folder)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    folder = write(tmp_path, {"w": whole(torch.ones(1))})
    put = dcp._put
    monkeypatch.setattr(dcp, "_put", lambda *args: (folder / DATA).write_bytes(b"longer" * 1000) and put(*args))
    with pytest.raises(CheckpointError, match=rf"{DATA}' changed while it was read \(\d+ bytes, then 6000\)"):
        load_dcp(folder)


def test_a_flipped_bit_is_refused_and_its_tensor_named(tmp_path):
    tensor = torch.randn(100)
    folder = write(tmp_path, {"w": whole(tensor)})
    data = bytearray((folder / DATA).read_bytes())
    data[data.index(tensor.numpy().tobytes())] ^= 1
    (folder / DATA).write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{DATA} \(tensor 'w'\).* is damaged: its record '\w+/data/0' fails"):
        load_dcp(folder)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not a pickle",
        pickle.dumps({"a": 1}),
        pickle.dumps([1]),
        pickle.dumps(torch.float32),
        b"\x80\x04r\xff\xff",
    ],
    ids=["empty", "text", "dict", "list", "dtype", "cut"],
)
def test_a_table_of_another_form_is_refused(tmp_path, raw):
    folder = write(tmp_path, {"w": whole(torch.ones(1))})
    (folder / ".metadata").write_bytes(raw)
    with pytest.raises(
        CheckpointError, match=r"cannot read .*\.metadata': it is .*no table of a distributed checkpoint"
    ):
        load_dcp(folder)


def test_a_table_that_is_too_large_is_refused(tmp_path, monkeypatch):
    folder = write(tmp_path, {"w": whole(torch.ones(1))})
    monkeypatch.setattr(dcp, "_MAX_METADATA_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"\.metadata': it has more than 100 bytes"):
        load_dcp(folder)
    monkeypatch.undo()
    monkeypatch.setattr(dcp_metadata, "_MAX_PARTS", 0)
    with pytest.raises(CheckpointError, match=r"\.metadata': .*more than 0 parts"):
        load_dcp(folder)


def entry(metadata):
    return metadata.state_dict_metadata["w"]


def info(metadata):
    return next(iter(metadata.storage_data.values()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(m, "storage_data", None), "expected a dict, got NoneType"),
        (lambda m: m.storage_data.clear(), "KeyError"),
        (lambda m: setattr(m, "state_dict_metadata", {3: entry(m)}), "expected a name, got int"),
        (lambda m: setattr(m, "state_dict_metadata", {"w": "x"}), "expected a TensorStorageMetadata, got str"),
        (lambda m: setattr(m, "planner_data", {"w": ["w"]}), "the keys of 'w' are no tuple of names"),
        (lambda m: setattr(m, "planner_data", {"w": ("a", "b")}), r"the keys of 'w' are \('a', 'b'\)"),
        (lambda m: setattr(entry(m).properties, "dtype", "float32"), "the dtype of 'w' is a str"),
        (lambda m: setattr(entry(m), "size", [6]), "expected at most 64 sizes, got list"),
        (lambda m: setattr(entry(m), "size", (-6,)), "expected a number of 0 or more, got -6"),
        (lambda m: setattr(entry(m), "size", (0, 2**60)), r"'w' has the shape \(0, 1152921504606846976\)"),
        (lambda m: setattr(entry(m), "size", (7,)), r"the parts of 'w' do not make up its shape \(7,\)"),
        (lambda m: setattr(entry(m), "size", (5,)), r"a part of 'w' lies outside its shape \(5,\)"),
        (lambda m: setattr(entry(m), "chunks", ["x"]), "expected a ChunkStorageMetadata, got str"),
        (
            lambda m: setattr(info(m), "transform_descriptors", ["stream.zstd"]),
            r"through an extension, \['stream.zstd'\]",
        ),
        (lambda m: setattr(info(m), "relative_path", 3), "expected a name, got int"),
        (lambda m: setattr(info(m), "offset", -1), "expected a number of 0 or more, got -1"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path, change, reason):
    folder = write(tmp_path, {"w": whole(torch.arange(6.0))}, change=change)
    with pytest.raises(CheckpointError, match=rf"\.metadata': it is no table of a distributed checkpoint .*{reason}"):
        load_dcp(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda m: setattr(info(m), "length", 10),
            r"tensor 'w' .* claims 24 bytes \(shape \(6,\)\), its record has 10",
        ),
        (lambda m: setattr(info(m), "length", 10**9), rf"claims bytes 0 to 1000000000 of '{DATA}', which has \d+"),
        (lambda m: setattr(info(m), "offset", 10**9), rf"claims bytes 1000000000 to \d+ of '{DATA}'"),
        (lambda m: m.state_dict_metadata.pop("w"), "holds no weights: found nothing"),
        (
            lambda m: m.state_dict_metadata.update(w=BytesStorageMetadata()),
            r"holds no weights: found 'w'\. Name the folder that the model was saved to",
        ),
    ],
    ids=["short", "long", "outside", "nothing", "no tensor"],
)
def test_a_table_that_claims_too_much_is_refused(tmp_path, change, reason):
    folder = write(tmp_path, {"w": whole(torch.arange(6.0))}, change=change)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_dcp(folder)
    assert str(tmp_path) in str(caught.value)


def test_many_names_for_one_record_are_refused(tmp_path):
    """A small file could fill the memory a thousand times over."""

    def repeat(metadata):
        for number in range(3):
            metadata.state_dict_metadata[f"w{number}"] = metadata.state_dict_metadata["w"]
            metadata.storage_data[MetadataIndex(f"w{number}", (0,))] = info(metadata)

    folder = write(tmp_path, {"w": whole(torch.arange(6.0))}, change=repeat)
    with pytest.raises(CheckpointError, match=r"'w0' .* for all its tensors together"):
        load_dcp(folder)


def test_parts_that_overlap_and_leave_holes_are_refused(tmp_path):
    folder = write(tmp_path, {"w": (torch.ones(4), [((0,), (2,)), ((1,), (2,))])})
    with pytest.raises(CheckpointError, match=r"'w' .* is not whole: its 2 parts overlap and leave holes"):
        load_dcp(folder)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (torch.ones(6, dtype=torch.float64), r"got torch\.float64 of shape \(6,\)"),
        (torch.ones(7), r"got torch\.float32 of shape \(7,\)"),
        ({"w": torch.ones(6)}, "got dict"),
        (torch.ones(6).to_sparse(), "got Tensor"),
        (torch.ones(6, device="meta"), "got Tensor"),
    ],
    ids=["dtype", "shape", "dict", "sparse", "meta"],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
def test_a_record_that_holds_something_else_is_refused(tmp_path, value, found):
    folder = write(tmp_path, {"w": whole(torch.ones(6))}, records={"w": record_of(value)})
    expected = r"expected a dense torch\.float32 tensor of shape \(6,\)"
    with pytest.raises(CheckpointError, match=rf"{DATA} \(tensor 'w'\).*: {expected}, {found}"):
        load_dcp(folder)


def test_a_record_that_is_no_file_of_torch_is_refused(tmp_path):
    folder = write(tmp_path, {"w": whole(torch.ones(1))}, records={"w": b"x" * 100})
    with pytest.raises(CheckpointError, match=r"\(tensor 'w'\).*was not written by torch\.save"):
        load_dcp(folder)


def test_a_name_that_is_tensor_and_group_at_once_is_refused(tmp_path):
    def nest(metadata):
        metadata.planner_data = {"a": ("a",), "a.b": ("a", "b")}

    folder = write(tmp_path, {"a": whole(torch.ones(1)), "a.b": whole(torch.ones(1))}, change=nest)
    with pytest.raises(CheckpointError, match=r"holds 'a\.b' both as a tensor and as a group"):
        load_dcp(folder)
