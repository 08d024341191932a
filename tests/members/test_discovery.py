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
    return [source.path.name for source in discovery.sources]


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
        "notes.txt": "suffix '.txt' is none of .pt, .pth, .pth.tar, .ckpt, .safetensors",
        "README": "no suffix",
        ".hidden.pt": "hidden file",
        "ensexport.toml": "a configuration file inside a checkpoint folder is never obeyed",
        "pyproject.toml": "a configuration file inside a checkpoint folder is never obeyed",
        "x.pt": "sub-folder beside checkpoints: name it to take what it holds",
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
    assert [source.path.parent.name for source in found.sources] == ["seed_1", "seed_9", "seed_10"]
    assert reasons(found) == {"log.txt": "suffix '.txt' is none of .pt, .pth, .pth.tar, .ckpt, .safetensors"}


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
    fill(tmp_path, "a.onnx", "b.txt")
    with pytest.raises(NoCheckpointError, match=r"saw 'a.onnx' .*'b.txt'") as caught:
        find_checkpoints([tmp_path])
    assert caught.value.details["seen"] == [str(tmp_path / "a.onnx"), str(tmp_path / "b.txt")]


def test_a_glob_without_a_match_says_what_is_there(tmp_path):
    fill(tmp_path, "a.pt")
    with pytest.raises(NoCheckpointError, match=r"fold_\*\.pt' matches no checkpoint: saw 'a.pt' \(not matched"):
        find_checkpoints([str(tmp_path / "fold_*.pt")])
    with pytest.raises(NoCheckpointError, match="matches no checkpoint: it is empty"):
        find_checkpoints([str(tmp_path / "nowhere" / "fold_*.pt")])


@pytest.mark.parametrize("name", ["model.bin", "weights"], ids=["other suffix", "no suffix"])
def test_an_explicit_file_is_taken_whatever_its_suffix(tmp_path, name):
    fill(tmp_path, name)
    (source,) = find_checkpoints([tmp_path / name]).sources
    assert (source.path, source.is_explicit) == (tmp_path / name, True)


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


# -- folders of runs ---------------------------------------------------------------------------------


def taken(*paths):
    return [f"{source.path.parent.name}/{source.path.name}" for source in find_checkpoints(paths).sources]


def test_one_checkpoint_of_each_run_is_taken_in_natural_order(tmp_path):
    for number in (10, 9, 1):
        fill(tmp_path / f"fold_{number}", "checkpoint_best.pth", "checkpoint_final.pth", "log.txt")
    fill(tmp_path, "plans.json", "dataset.json")
    assert taken(tmp_path) == [f"fold_{number}/checkpoint_best.pth" for number in (1, 9, 10)]
    found = find_checkpoints([tmp_path])
    assert {source.note for source in found.sources} == {"the best of 2"}
    final = "another moment of the same run: 'checkpoint_best.pth', the best, is taken"
    assert reasons(found)["checkpoint_final.pth"] == final
    assert reasons(found)["plans.json"].startswith("suffix '.json' is none of")


def test_runs_are_found_below_other_folders(tmp_path):
    for number in range(2):
        fill(tmp_path / f"version_{number}" / "checkpoints", "epoch=4-step=50.ckpt", "epoch=9-step=100.ckpt")
        fill(tmp_path / f"version_{number}", "hparams.yaml", "events.out.tfevents.1")
    fill(tmp_path / "plots", "a.png")
    found = find_checkpoints([tmp_path])
    assert [str(source.path.relative_to(tmp_path)) for source in found.sources] == [
        "version_0/checkpoints/epoch=9-step=100.ckpt",
        "version_1/checkpoints/epoch=9-step=100.ckpt",
    ]
    assert reasons(found)["plots"] == "sub-folder without a checkpoint"
    assert "hparams.yaml" in reasons(found)


def test_members_in_a_sub_folder_that_are_no_moments_of_one_run_are_all_taken(tmp_path):
    fill(tmp_path / "fold_0", "seed_0.pt", "seed_1.pt")
    fill(tmp_path / "fold_1", "seed_0.pt", "seed_1.pt")
    assert taken(tmp_path) == ["fold_0/seed_0.pt", "fold_0/seed_1.pt", "fold_1/seed_0.pt", "fold_1/seed_1.pt"]


def test_a_flat_folder_is_taken_whole_with_a_warning_if_it_looks_like_one_run(tmp_path):
    fill(tmp_path, "checkpoint-1.pth.tar", "checkpoint-2.pth.tar", "model_best.pth.tar")
    found = find_checkpoints([tmp_path])
    assert len(found.sources) == 3
    (warning,) = found.warnings
    assert "all 3 checkpoints" in warning
    assert "'model_best.pth.tar' is the best" in warning
    assert not find_checkpoints([fill(tmp_path / "seeds", "s0.pt", "s1.pt")]).warnings


def test_several_folders_are_runs_whether_named_or_matched(tmp_path):
    for number in (2, 10):
        fill(tmp_path / f"run_{number}", "best.pt", "last.pt")
    fill(tmp_path / "run_11")
    expected = ["run_2/best.pt", "run_10/best.pt"]
    assert taken(tmp_path / "run_2", tmp_path / "run_10") == expected
    assert taken(str(tmp_path / "run_*")) == expected
    assert reasons(find_checkpoints([str(tmp_path / "run_*")]))["run_11"] == "sub-folder without a checkpoint"


def test_checkpoint_folders_of_one_run_stand_for_one_member(tmp_path):
    for run in range(2):
        for step in (500, 1000):
            fill(tmp_path / f"run_{run}" / f"checkpoint-{step}", "config.json", "model.safetensors", "optimizer.pt")
    found = find_checkpoints([tmp_path])
    assert [str(source.path.relative_to(tmp_path)) for source in found.sources] == [
        "run_0/checkpoint-1000",
        "run_1/checkpoint-1000",
    ]
    assert [source.folder.kind for source in found.sources] == ["hf", "hf"]
    assert found.sources[0].note == "the newest of 2 folders"
    assert reasons(found)["optimizer.pt"] == "optimizer state, no weights"
    assert "'checkpoint-1000', the newest, is taken" in reasons(found)["checkpoint-500"]


def test_links_that_lead_out_of_a_folder_are_not_followed(tmp_path):
    fill(tmp_path / "elsewhere", "secret.pt")
    fill(tmp_path / "blobs", "0123abcd")
    folder = fill(tmp_path / "ckpts", "m.pt")
    (folder / "out.pt").symlink_to(tmp_path / "elsewhere" / "secret.pt")
    (folder / "inside.pt").symlink_to("m.pt")
    (folder / "hub.pt").symlink_to("../blobs/0123abcd")
    (folder / "down").symlink_to(tmp_path / "elsewhere")
    found = find_checkpoints([folder])
    assert names(found) == ["hub.pt", "inside.pt", "m.pt"]
    assert reasons(found)["out.pt"].startswith("a link that leads out of the folder, to '")
    assert reasons(found)["down"] == "a link to a folder: name it to take what it holds"
    assert names(find_checkpoints([folder / "out.pt"])) == ["out.pt"]


def test_a_circle_of_folders_ends(tmp_path):
    fill(tmp_path / "a")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    with pytest.raises(NoCheckpointError, match="holds no checkpoint"):
        find_checkpoints([tmp_path])


def test_folders_too_deep_are_named(tmp_path):
    fill(tmp_path.joinpath(*"abcdefghijk"), "m.pt")
    with pytest.raises(NoCheckpointError, match="holds no checkpoint"):
        find_checkpoints([tmp_path])
    assert names(find_checkpoints([tmp_path / "a" / "b" / "c"])) == ["m.pt"]
