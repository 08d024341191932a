import os
from pathlib import Path

import pytest

from ensexport.errors import CheckpointError, NoCheckpointError, UsageError
from ensexport.members.discovery import find_checkpoints, holds_checkpoints


def fill(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def names(discovery):
    return [path.name for path in discovery.files]


def reasons(discovery):
    return {Path(item.path).name: item.reason for item in discovery.skipped}


def test_a_folder_is_taken_in_natural_order(tmp_path):
    fill(tmp_path, "m10.pt", "m2.pth", "m1.safetensors", "M3.PT")
    assert names(find_checkpoints([tmp_path])) == ["m1.safetensors", "m2.pth", "M3.PT", "m10.pt"]


def test_explicit_files_keep_their_order_and_folders_expand_in_place(tmp_path):
    fill(tmp_path / "d", "b2.pt", "b10.pt")
    fill(tmp_path, "z.pt", "a.pt")
    found = find_checkpoints([tmp_path / "z.pt", str(tmp_path / "d"), tmp_path / "a.pt", tmp_path / "z.pt"])
    assert names(found) == ["z.pt", "b2.pt", "b10.pt", "a.pt", "z.pt"]


def test_what_is_not_taken_is_listed_with_a_reason(tmp_path):
    fill(tmp_path, "m.pt", "notes.txt", "README", ".hidden.pt", "ensexport.toml", "pyproject.toml")
    fill(tmp_path / "x.pt", "inner.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    (tmp_path / "gone.pt").symlink_to("nowhere.pt")
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    found = find_checkpoints([tmp_path])
    assert names(found) == ["m.pt"]
    assert reasons(found) == {
        "notes.txt": "suffix '.txt' is none of .pt, .pth, .pth.tar, .safetensors",
        "README": "no suffix",
        ".hidden.pt": "hidden file",
        "ensexport.toml": "a configuration file inside a checkpoint folder is never obeyed",
        "pyproject.toml": "a configuration file inside a checkpoint folder is never obeyed",
        "x.pt": "sub-folder: name it on the command line to take its checkpoints",
        "pipe.pt": "not a regular file but a pipe",
        "zero.pt": "not a regular file but a device",
        "gone.pt": "a link that leads nowhere (No such file or directory)",
        "loop.pt": "a link that leads nowhere (Too many levels of symbolic links)",
    }


def test_a_link_to_a_regular_file_is_taken(tmp_path):
    fill(tmp_path / "blobs", "1234.pt")
    fill(tmp_path / "snapshot")
    (tmp_path / "snapshot" / "model.pt").symlink_to("../blobs/1234.pt")
    assert names(find_checkpoints([tmp_path / "snapshot"])) == ["model.pt"]


def test_a_glob_is_expanded_in_natural_order(tmp_path):
    for number in (10, 9, 1):
        fill(tmp_path / f"seed_{number}", "model.pt", "log.txt")
    found = find_checkpoints([str(tmp_path / "seed_*" / "*")])
    assert [path.parent.name for path in found.files] == ["seed_1", "seed_9", "seed_10"]
    assert reasons(found) == {"log.txt": "suffix '.txt' is none of .pt, .pth, .pth.tar, .safetensors"}


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    fill(tmp_path, "epoch=[1].pt", "epoch=1.pt")
    assert names(find_checkpoints([str(tmp_path / "epoch=[1].pt")])) == ["epoch=[1].pt"]


def test_odd_file_names_are_taken(tmp_path):
    odd = ["-rf.pt", "a b.pt", "line\nbreak.pt", "\N{SNOWMAN}.pt"]
    fill(tmp_path, *odd)
    assert sorted(names(find_checkpoints([tmp_path]))) == sorted(odd)


@pytest.mark.parametrize("path", ["nowhere", "nowhere/m.pt", ""], ids=["folder", "file", "empty text"])
def test_a_path_that_does_not_exist_is_a_usage_error(tmp_path, path):
    given = str(tmp_path / path) if path else ""
    with pytest.raises(UsageError, match="no such file or folder") as caught:
        find_checkpoints([given])
    assert caught.value.exit_code == 2
    assert f"'{given}'" in str(caught.value)


def test_no_path_at_all_is_a_usage_error():
    with pytest.raises(UsageError, match="no checkpoint is given"):
        find_checkpoints([])


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(NoCheckpointError, match="holds no checkpoint: it is empty") as caught:
        find_checkpoints([tmp_path])
    assert caught.value.exit_code == 3


def test_a_folder_without_checkpoints_says_what_it_holds(tmp_path):
    fill(tmp_path, "a.ckpt", "b.txt")
    with pytest.raises(NoCheckpointError, match=r"saw 'a.ckpt' .*'b.txt'") as caught:
        find_checkpoints([tmp_path])
    assert caught.value.details["seen"] == [str(tmp_path / "a.ckpt"), str(tmp_path / "b.txt")]


def test_a_glob_without_a_match_says_what_is_there(tmp_path):
    fill(tmp_path, "a.pt")
    with pytest.raises(NoCheckpointError, match=r"fold_\*\.pt' matches no checkpoint: saw 'a.pt' \(not matched"):
        find_checkpoints([str(tmp_path / "fold_*.pt")])
    with pytest.raises(NoCheckpointError, match="matches no checkpoint: it is empty"):
        find_checkpoints([str(tmp_path / "nowhere" / "fold_*.pt")])


@pytest.mark.parametrize("name", ["model.onnx", "weights"], ids=["other suffix", "no suffix"])
def test_an_explicit_file_of_another_suffix_is_refused(tmp_path, name):
    fill(tmp_path, name)
    with pytest.raises(CheckpointError, match=r"expected a suffix of \.pt, \.pth, \.pth\.tar, \.safetensors") as caught:
        find_checkpoints([tmp_path / name])
    assert name in str(caught.value)
    assert repr(Path(name).suffix) in str(caught.value)


def test_an_explicit_pipe_or_dangling_link_is_refused(tmp_path):
    os.mkfifo(tmp_path / "p.pt")
    (tmp_path / "gone.pt").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=r"p\.pt': not a regular file but a pipe"):
        find_checkpoints([tmp_path / "p.pt"])
    with pytest.raises(CheckpointError, match=r"gone\.pt': a link that leads nowhere"):
        find_checkpoints([tmp_path / "gone.pt"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_refused(tmp_path):
    folder = fill(tmp_path / "d", "m.pt")
    folder.chmod(0)
    try:
        with pytest.raises(CheckpointError, match=r"cannot list the folder .*Permission denied"):
            find_checkpoints([folder])
    finally:
        folder.chmod(0o700)


def test_a_folder_named_as_a_path_covers_all_below_it_but_a_file_only_its_own_folder(tmp_path):
    fill(tmp_path / "ckpts" / "sub", "m.pt")
    fill(tmp_path, "top.pt")
    assert holds_checkpoints(tmp_path / "ckpts" / "sub", [tmp_path / "ckpts"])
    assert not holds_checkpoints(tmp_path, [tmp_path / "ckpts"])
    assert holds_checkpoints(tmp_path, [tmp_path / "top.pt"])
    assert not holds_checkpoints(tmp_path / "ckpts", [tmp_path / "top.pt"])
    assert holds_checkpoints(tmp_path / "ckpts" / "sub", [str(tmp_path / "ckpts" / "*" / "*.pt")])
    assert not holds_checkpoints(tmp_path, [str(tmp_path / "*" / "sub"), "nowhere"])
