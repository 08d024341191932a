import hashlib
import json
import os

import pytest
import torch
from safetensors.torch import save_file

from ensexport.errors import CheckpointError, IncompleteCheckpointError, UnsafeCheckpointError
from ensexport.members import sharded
from ensexport.members.sharded import load_sharded

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def state():
    return {"a.weight": torch.randn(3, 2), "b.weight": torch.randn(4), "b.bias": torch.tensor([1, 2])}


def write(folder, *, first=None, second=None, index=None):
    """Write two shards and their index; what is given takes the place of a sound part."""
    weights = state()
    folder.mkdir(exist_ok=True)
    save_file(first or {"a.weight": weights["a.weight"]}, folder / FIRST)
    save_file(second or {name: weights[name] for name in ("b.weight", "b.bias")}, folder / SECOND)
    path = folder / "model.safetensors.index.json"
    default = {"a.weight": FIRST, "b.weight": SECOND, "b.bias": SECOND}
    path.write_text(json.dumps({"metadata": {"total_size": 56}, "weight_map": index or default}))
    return path, weights


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_shards_are_put_together_in_the_order_of_the_index(tmp_path):
    path, weights = write(tmp_path, index={"b.bias": SECOND, "a.weight": FIRST, "b.weight": SECOND})
    found = load_sharded(path)
    assert list(found.content) == ["b.bias", "a.weight", "b.weight"]
    assert all(torch.equal(found.content[name], weights[name]) for name in weights)
    assert found.format == "sharded-safetensors"
    names = sorted([FIRST, SECOND, path.name])
    assert found.size_bytes == sum((tmp_path / name).stat().st_size for name in names)
    lines = "".join(f"{sha256(tmp_path / name)}  {name}\n" for name in names)
    assert found.sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_shards_that_torch_wrote_are_read(tmp_path):
    weights = state()
    torch.save({"a.weight": weights["a.weight"]}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({n: weights[n] for n in ("b.weight", "b.bias")}, tmp_path / "pytorch_model-00002-of-00002.bin")
    path = tmp_path / "pytorch_model.bin.index.json"
    homes = {name: f"pytorch_model-0000{1 if name[0] == 'a' else 2}-of-00002.bin" for name in weights}
    path.write_text(json.dumps({"weight_map": homes}))
    found = load_sharded(path)
    assert found.format == "sharded-torch"
    assert all(torch.equal(found.content[name], weights[name]) for name in weights)


def test_each_shard_is_read_once_and_let_go(tmp_path, monkeypatch):
    path, _ = write(tmp_path)
    read = []
    load = sharded.load_file
    monkeypatch.setattr(sharded, "load_file", lambda file, **options: read.append(file.name) or load(file, **options))
    load_sharded(path)
    assert read == [FIRST, SECOND]


def test_what_is_done_to_a_shard_afterwards_does_not_reach_the_weights(tmp_path):
    path, weights = write(tmp_path)
    found = load_sharded(path)
    for name in (FIRST, SECOND):
        with (tmp_path / name).open("r+b") as file:
            file.write(bytes((tmp_path / name).stat().st_size))
    assert all(torch.equal(found.content[name], weights[name]) for name in weights)


def test_the_links_of_the_hugging_face_cache_are_followed(tmp_path):
    write(tmp_path / "blobs")
    folder = tmp_path / "snapshots" / "0123"
    folder.mkdir(parents=True)
    for name in (FIRST, SECOND, "model.safetensors.index.json"):
        (folder / name).symlink_to(f"../../blobs/{name}")
    assert list(load_sharded(folder / "model.safetensors.index.json").content) == ["a.weight", "b.weight", "b.bias"]


def test_a_missing_shard_is_refused(tmp_path):
    path, _ = write(tmp_path)
    (tmp_path / SECOND).unlink()
    with pytest.raises(IncompleteCheckpointError, match=f"index.json' names '{SECOND}', which is not there"):
        load_sharded(path)


def test_a_tensor_missing_in_its_shard_is_refused(tmp_path):
    path, _ = write(tmp_path, second={"b.weight": torch.ones(4)})
    with pytest.raises(IncompleteCheckpointError, match=f"{SECOND}' lacks 'b.bias', which .*index.json' places there"):
        load_sharded(path)


def test_a_tensor_that_the_index_does_not_name_is_refused(tmp_path):
    path, _ = write(tmp_path, first={"a.weight": torch.ones(3), "extra": torch.ones(1)})
    with pytest.raises(CheckpointError, match=f"{FIRST}' holds 'extra', which .*index.json' does not name"):
        load_sharded(path)


@pytest.mark.parametrize("home", ["first", "second"])
def test_a_tensor_in_two_shards_must_have_one_value(tmp_path, home):
    """Whichever of its two shards is read first."""
    index = {"a": FIRST, "b": SECOND, "twin": FIRST if home == "first" else SECOND}
    other = SECOND if home == "first" else FIRST
    twin = torch.ones(2)
    path, _ = write(
        tmp_path, first={"a": torch.ones(1), "twin": twin}, second={"b": torch.ones(1), "twin": twin}, index=index
    )
    assert torch.equal(load_sharded(path).content["twin"], twin)
    save_file({"b" if other == SECOND else "a": torch.ones(1), "twin": torch.zeros(2)}, tmp_path / other)
    with pytest.raises(CheckpointError, match=f"'twin' lies in two shards of .* with two values: .* in '{other}'"):
        load_sharded(path)


@pytest.mark.parametrize("name", ["../other/a.safetensors", "/etc/passwd", "sub/a.safetensors"])
def test_a_shard_elsewhere_is_refused(tmp_path, name):
    path, _ = write(tmp_path, index={"a.weight": name})
    with pytest.raises(CheckpointError, match=f"index.json' names '{name}': expected the plain name of a file"):
        load_sharded(path)


def test_a_link_that_leaves_the_folder_is_refused(tmp_path):
    path, _ = write(tmp_path / "m")
    (tmp_path / "m" / SECOND).rename(tmp_path / "secret.safetensors")
    (tmp_path / "m" / SECOND).symlink_to("../secret.safetensors")
    with pytest.raises(CheckpointError, match=f"{SECOND}': it is a link that leaves the folder, to .*secret"):
        load_sharded(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "no sound JSON"),
        (b"\xff", "no sound JSON .*utf-8"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "'a' stands there twice"),
        (b"[" * 10_000, "no sound JSON"),
        (b"[]", "expected an object with 'weight_map'"),
        (b'{"weight_map": {}}', "expected an object with 'weight_map'"),
        (b'{"weight_map": ["a"]}', "expected an object with 'weight_map'"),
        (b'{"weight_map": {"a": 3}}', "expected the name of a file for 'a', got int"),
    ],
    ids=["empty", "bytes", "twice", "deep", "list", "no names", "list of names", "number"],
)
def test_an_index_of_another_form_is_refused(tmp_path, text, reason):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(text)
    with pytest.raises(CheckpointError, match=rf"cannot read the index .*index\.json': .*{reason}"):
        load_sharded(path)


def test_an_index_that_is_too_large_is_refused(tmp_path, monkeypatch):
    path, _ = write(tmp_path)
    monkeypatch.setattr(sharded, "_MAX_INDEX_BYTES", 100)
    with pytest.raises(CheckpointError, match=f"it has {path.stat().st_size} bytes, more than 100"):
        load_sharded(path)


def test_an_index_that_cannot_be_read_is_refused(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    with pytest.raises(IncompleteCheckpointError, match=r"index\.json', which is not there"):
        load_sharded(path)
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=r"index\.json': it is not a regular file"):
        load_sharded(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_index_without_permission_is_refused(tmp_path):
    path, _ = write(tmp_path)
    path.chmod(0)
    with pytest.raises(CheckpointError, match=r"index\.json': Permission denied"):
        load_sharded(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.ones(1)], r"x\.bin' is no state dict: expected tensors by name, got list"),
        ({"a": torch.ones(1), "epoch": 3}, r"x\.bin' is no plain state dict: .* found 'epoch', of type int"),
        ({"a": torch.zeros(1).expand(10**6, 10**6)}, r"tensor 'a' in .*x\.bin' claims 4000000000000 bytes"),
    ],
    ids=["list", "number", "stride 0"],
)
def test_a_shard_that_holds_something_else_is_refused(tmp_path, content, reason):
    torch.save(content, tmp_path / "x.bin")
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_text('{"weight_map": {"a": "x.bin"}}')
    with pytest.raises(CheckpointError, match=reason):
        load_sharded(path)


def test_a_shard_that_asks_for_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch '{tmp_path / 'canary'}'",)

    torch.save({"a": Payload()}, tmp_path / "x.bin")
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_text('{"weight_map": {"a": "x.bin"}}')
    with pytest.raises(UnsafeCheckpointError, match=r"x\.bin': it asks to run posix\.system"):
        load_sharded(path)
    assert not (tmp_path / "canary").exists()
