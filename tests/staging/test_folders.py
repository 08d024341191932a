"""Folders as targets: put in place by one rename, and nothing but packages and empty folders is ever replaced."""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ensexport.errors import OutputError, TargetExistsError, UsageError
from ensexport.staging import Staging, system
from ensexport.staging.checks import is_package
from tests.faults.packages import MANIFEST, contents, fill, package, write_package


def test_a_folder_appears_at_commit_and_the_staging_folder_goes(tmp_path):
    target = tmp_path / "pkg"
    with Staging([], force=False, folders=[target]) as staging:
        assert (staging.targets, staging.folders) == ([], [target])
        assert staging.path(target).name == "pkg"
        assert os.listdir(staging.path(target)) == []
        fill(staging.path(target), "new")
        assert not target.exists()
        assert staging.commit() == [target]
    assert contents(target) == package("new")
    assert os.listdir(tmp_path) == ["pkg"]


def test_files_and_folders_in_one_commit(tmp_path):
    (tmp_path / "sub").mkdir()
    files, folders = [tmp_path / "a.onnx", tmp_path / "sub" / "b.ts"], [tmp_path / "pkg", tmp_path / "sub" / "pkg"]
    with Staging(files, force=False, folders=folders) as staging:
        for file in files:
            staging.path(file).write_text(file.name)
        for folder in folders:
            fill(staging.path(folder), "new")
        assert sorted(staging.commit()) == sorted([*files, *folders])
    assert sorted(os.listdir(tmp_path)) == ["a.onnx", "pkg", "sub"]
    assert sorted(os.listdir(tmp_path / "sub")) == ["b.ts", "pkg"]
    assert contents(tmp_path / "pkg") == contents(tmp_path / "sub" / "pkg") == package("new")


@pytest.mark.parametrize("call", ["there", "missing"])
def test_a_package_is_replaced_with_force_and_refused_without(tmp_path, monkeypatch, call):
    if call == "missing":
        monkeypatch.setattr(system, "_renameat2", lambda: None)
    target = tmp_path / "pkg"
    write_package(target, text="old")
    (target / "more").write_text("of the old one")
    with pytest.raises(TargetExistsError, match=f"cannot write '{target}': it exists") as caught:
        write_package(target)
    assert "--force" in caught.value.hint
    assert contents(target) == package("old") | {"more": b"of the old one"}
    assert write_package(target, force=True) == [target]
    assert contents(target) == package("new")
    assert os.listdir(tmp_path) == ["pkg"]


def test_an_empty_folder_is_replaced_with_force_and_refused_without(tmp_path):
    (tmp_path / "pkg").mkdir()
    with pytest.raises(TargetExistsError, match="it exists"):
        write_package(tmp_path / "pkg")
    write_package(tmp_path / "pkg", force=True)
    assert contents(tmp_path / "pkg") == package("new")


def holding(**files):
    """Make a folder that holds these files."""

    def make(target):
        target.mkdir()
        for name, text in files.items():
            (target / name.replace("__", ".")).write_text(text)

    return make


def linked_manifest(target):
    target.mkdir()
    (target.parent / "manifest").write_text(MANIFEST)
    (target / "manifest.json").symlink_to(target.parent / "manifest")


def link_to_package(target):
    write_package(target.with_name("elsewhere"), text="old")
    target.symlink_to(target.with_name("elsewhere"))


NO_MANIFEST = r"it is a folder without a manifest\.json of ensexport\. It is never replaced\. Choose another name\."
NEVER = {
    "no manifest": (holding(notes="mine"), NO_MANIFEST),
    "another tool's manifest": (holding(manifest__json=json.dumps({"tool": {"name": "other"}})), NO_MANIFEST),
    "a tool that is a word": (holding(manifest__json=json.dumps({"tool": "ensexport"})), NO_MANIFEST),
    "a list": (holding(manifest__json="[1]"), NO_MANIFEST),
    "no JSON": (holding(manifest__json="{"), NO_MANIFEST),
    "deep JSON": (holding(manifest__json="[" * 100_000), NO_MANIFEST),
    "a manifest that is a link": (linked_manifest, NO_MANIFEST),
    "a file": (lambda target: target.write_text("mine"), "it is a file, and the output is a folder"),
    "a link to a package": (link_to_package, "it is a link"),
    "a link to nothing": (lambda target: target.symlink_to("nothing"), "it is a link"),
}


@pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
@pytest.mark.parametrize(("make", "message"), NEVER.values(), ids=NEVER)
def test_what_is_never_replaced(tmp_path, make, message, force):
    make(tmp_path / "pkg")
    before, names = contents(tmp_path), sorted(os.listdir(tmp_path))
    with pytest.raises(OutputError, match=f"cannot write '{tmp_path}/pkg': {message}") as caught:
        Staging([], force=force, folders=[tmp_path / "pkg"])
    assert caught.value.exit_code == 7
    assert contents(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == names


def test_a_file_never_replaces_a_package(tmp_path):
    write_package(tmp_path / "pkg", text="old")
    with pytest.raises(OutputError, match="it is a folder"):
        Staging([tmp_path / "pkg"], force=True)


@pytest.mark.parametrize("target", [".", "..", "/", "sub/.."])
def test_folders_without_a_name_of_their_own(tmp_path, monkeypatch, target):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="a new folder needs a name of its own"):
        Staging([], force=True, folders=[Path(target)])


@pytest.mark.parametrize("inside", ["", "sub"])
def test_the_current_folder_and_those_around_it(tmp_path, monkeypatch, inside):
    write_package(tmp_path / "pkg", text="old")
    (tmp_path / "pkg" / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "pkg" / inside)
    with pytest.raises(OutputError, match="it is or holds the current folder"):
        Staging([], force=True, folders=[tmp_path / "pkg"])


def test_the_home_folder(tmp_path, monkeypatch):
    write_package(tmp_path / "me", text="old")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    with pytest.raises(OutputError, match="it is or holds the home folder"):
        Staging([], force=True, folders=[tmp_path / "me"])


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="no folder that is surely a mount point")
def test_a_mount_point():
    with pytest.raises(OutputError, match="another file system is mounted there"):
        Staging([], force=True, folders=[Path("/proc")])


def test_a_current_folder_that_was_removed(tmp_path):
    # In a process of its own, which may lose its current folder.
    code = """
import os, sys
from pathlib import Path
from ensexport.staging import Staging
os.mkdir("gone"); os.chdir("gone"); os.rmdir("../gone")
Staging([], force=True, folders=[Path(sys.argv[1])])
"""
    write_package(tmp_path / "pkg", text="old")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "pkg")], check=True, cwd=tmp_path)


@pytest.mark.parametrize("call", ["there", "missing"])
@pytest.mark.parametrize("what", ["package", "folder", "file", "link"])
def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch, what, call):
    if call == "missing":
        monkeypatch.setattr(system, "_renameat2", lambda: None)
    target = tmp_path / "pkg"
    with Staging([], force=False, folders=[target]) as staging:
        fill(staging.path(target), "new")
        {"package": lambda: write_package(target, text="other"), "folder": target.mkdir,
         "file": lambda: target.write_text("other"), "link": lambda: target.symlink_to(tmp_path)}[what]()  # fmt: skip
        before = os.lstat(target)
        with pytest.raises(TargetExistsError, match=r"it exists\. It appeared while this command ran"):
            staging.commit()
    assert os.path.samestat(os.lstat(target), before)
    assert os.listdir(tmp_path) == ["pkg"]


@pytest.mark.parametrize("call", ["there", "missing"])
def test_what_becomes_somebody_elses_meanwhile_is_put_back(tmp_path, monkeypatch, call):
    """With force: the folder that was a package when it was looked at, and is none when it was moved."""
    target = tmp_path / "pkg"
    write_package(target, text="old")
    real = system._renameat2()

    def becoming(*arguments):
        (target / "manifest.json").unlink(missing_ok=True)
        return real(*arguments)

    if call == "missing":
        rename = os.rename

        def renamed(source, place):
            (target / "manifest.json").unlink(missing_ok=True)
            rename(source, place)

        monkeypatch.setattr(system, "_renameat2", lambda: None)
        monkeypatch.setattr(os, "rename", renamed)
    else:
        monkeypatch.setattr(system, "_renameat2", lambda: becoming)
    with pytest.raises(OutputError, match="it is a folder without a manifest"):
        write_package(target, force=True)
    assert contents(target) == {file: data for file, data in package("old").items() if file != "manifest.json"}
    assert os.listdir(tmp_path) == ["pkg"]


def test_a_folder_that_was_moved_by_others_is_tried_again(tmp_path, monkeypatch):
    target = tmp_path / "pkg"
    write_package(target, text="old")
    real, calls = system._renameat2(), []

    def racing(source, place, flags):
        calls.append(flags)
        if len(calls) == 1:
            os.rename(target, tmp_path / "taken")  # before the exchange
        if len(calls) == 2:
            os.rename(tmp_path / "taken", target)  # before the rename to a free name
        return real(source, place, flags)

    monkeypatch.setattr(system, "_renameat2", lambda: racing)
    write_package(target, force=True)
    assert calls == [system.EXCHANGE, system.NO_REPLACE, system.EXCHANGE]
    assert contents(target) == package("new")


def test_inner_folders_that_may_not_be_written_to_are_removed_too(tmp_path):
    target = tmp_path / "pkg"
    write_package(target, text="old")
    os.chmod(target / "test_data_set_0", 0o555)
    write_package(target, force=True)
    assert contents(target) == package("new")
    assert os.listdir(tmp_path) == ["pkg"]


@pytest.mark.parametrize("what", ["link", "socket"])
def test_only_files_and_folders_are_put_in_place(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    target = Path("pkg")
    with Staging([], force=False, folders=[target]) as staging:
        fill(staging.path(target), "new")
        odd = staging.path(target) / "test_data_set_0" / "odd"
        if what == "link":
            odd.symlink_to("input_0.pb")
        else:
            monkeypatch.chdir(odd.parent)  # the path of a socket is short
            with socket.socket(socket.AF_UNIX) as end:
                end.bind("odd")
        with pytest.raises(OutputError, match="cannot write 'pkg': 'test_data_set_0/odd' is neither a file nor a fold"):
            staging.commit()
    assert contents(tmp_path) == {}


def test_the_manifest_is_synced_last(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(descriptor):
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc to know what is synced")
    monkeypatch.setattr(os, "fsync", fsync)
    write_package(tmp_path / "pkg")
    assert synced == [
        "model.onnx", "model.ts", "input_0.pb", "test_data_set_0", "manifest.json", "pkg", "journal", tmp_path.name,
    ]  # fmt: skip


@pytest.mark.parametrize("inner", ["pkg/e.onnx", "pkg/sub", "pkg"])
def test_a_target_in_a_target(tmp_path, inner):
    (tmp_path / "pkg").mkdir()
    with pytest.raises(UsageError, match=r"lies in output|is named twice"):
        Staging([tmp_path / inner], force=True, folders=[tmp_path / "pkg"])
    with pytest.raises(UsageError, match=r"lies in output|is named twice"):
        Staging([], force=True, folders=[tmp_path / inner, tmp_path / "pkg"])


def test_a_missing_parent(tmp_path):
    with pytest.raises(OutputError, match=f"cannot write '{tmp_path}/no/pkg': '{tmp_path}/no' does not exist"):
        Staging([], force=True, folders=[tmp_path / "no" / "pkg"])


def test_a_fault_that_does_not_go_away_loses_nothing(tmp_path, monkeypatch):
    target, file = tmp_path / "pkg", tmp_path / "e.onnx"
    write_package(target, text="old")
    real, calls = system._renameat2(), []

    def once(*arguments):
        calls.append(arguments)
        return 5 if len(calls) > 1 else real(*arguments)  # EIO

    def fail(*_):
        raise OSError(5, "broken")

    monkeypatch.setattr(system, "_renameat2", lambda: once)
    monkeypatch.setattr("ensexport.staging.staging.end_journal", fail)
    with pytest.raises(OutputError, match="cannot put back what was there") as caught:
        write_package(target, force=True)
    kept = Path(caught.value.hint.split("kept: ")[1].strip(" ."))
    assert contents(kept) == package("old")
    assert contents(target) == package("new")
    Staging([file], force=False)  # the next run does not take it for a leftover
    assert contents(kept) == package("old")


@pytest.mark.parametrize("number", [errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR], ids=errno.errorcode.get)
def test_without_renameat2_what_appears_after_the_look_is_in_the_way_too(tmp_path, monkeypatch, number):
    def rename(*_):
        raise OSError(number, "there")

    monkeypatch.setattr(system, "_renameat2", lambda: None)
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(FileExistsError):
        system.rename_new(tmp_path / "a", tmp_path / "b")


def test_a_package_is_known_by_its_manifest(tmp_path):
    assert not is_package(tmp_path)
    (tmp_path / "manifest.json").write_text(MANIFEST)
    assert is_package(tmp_path)
    assert not is_package(tmp_path / "manifest.json")


def seen_by_a_server(repository, work):
    """All names that are ever in a folder while something is done."""
    names, real = set(), os.fsync

    def fsync(descriptor):
        names.update(os.listdir(repository))
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        work()
    return names | set(os.listdir(repository))


def write_watched(*targets, text="new", force=False):
    with Staging([], folders=targets, force=force, watched=[target.parent for target in targets]) as staging:
        for target in targets:
            fill(staging.path(target), text)
        staging.commit()


@pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
def test_nothing_is_staged_in_a_folder_that_a_server_reads(tmp_path, force):
    target = tmp_path / "repository" / "fraud"
    target.parent.mkdir()
    if force:
        write_package(target, text="old")
    assert seen_by_a_server(target.parent, lambda: write_watched(target, force=force)) == {"fraud"}
    assert contents(tmp_path / "repository" / "fraud") == package("new")
    assert os.listdir(tmp_path) == ["repository"]


def test_two_watched_folders_with_one_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    targets = [Path(name, "fraud") for name in ("a", "b")]
    for target in targets:
        target.parent.mkdir()
    write_watched(*targets)
    assert [contents(target) for target in targets] == [package("new")] * 2
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_watched_folder_behind_a_link(tmp_path, monkeypatch):
    (tmp_path / "real" / "repository").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/repository")
    write_watched(tmp_path / "link" / "fraud")
    assert contents(tmp_path / "real" / "repository") == {
        f"fraud/{name}": data for name, data in package("new").items()
    }
    monkeypatch.chdir(tmp_path / "link")
    write_watched(Path("fraud"), text="newer", force=True)
    assert contents(Path("fraud")) == package("newer")
    write_package(Path("..", "other"))  # the parent of where the link leads to
    assert sorted(os.listdir(tmp_path / "real")) == ["other", "repository"]


def test_where_the_folder_around_a_watched_one_is_another_file_system(tmp_path, monkeypatch):
    target = tmp_path / "repository" / "fraud"
    target.parent.mkdir()
    real = os.stat

    def stat(path, *arguments, **options):
        if Path(path) == tmp_path:
            raise OSError(5, "broken")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)
    with Staging([], folders=[target], force=False, watched=[target.parent]) as staging:
        assert staging.path(target).parent.parent.parent == target.parent
