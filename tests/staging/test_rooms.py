"""Staging folders of dead processes are removed by the next run; living ones, and what only looks like one, never."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest

from ensexport.errors import OutputError
from ensexport.staging import Staging, remove_room, remove_rooms, rooms, system, tell_folders
from ensexport.staging.rooms import clear_stale
from tests.faults.packages import contents, files, fill, package, write_files, write_package
from tests.faults.processes import end_of, fork, run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and flock")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def left_by_a_killed_process(folder, *, name="x.onnx"):
    """A staging folder whose process was killed while it wrote."""

    def work():
        with Staging([folder / name], force=False, folders=[folder / "pkg"]) as staging:
            staging.path(folder / name).write_text("half")
            staging.scratch(folder / name).write_text("scratch")
            fill(staging.path(folder / "pkg"), "half")
            die()

    assert run(work) == -signal.SIGKILL
    (left,) = folder.glob(".ensexport-*")
    return left


def test_what_a_killed_process_left_is_removed_before_anything_is_written(tmp_path):
    left_by_a_killed_process(tmp_path)
    Staging([tmp_path / "a.onnx"], force=False)
    assert os.listdir(tmp_path) == []


def test_it_is_removed_beside_each_target(tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        left_by_a_killed_process(tmp_path / name)
    Staging([tmp_path / "one" / "a.onnx"], force=False, folders=[tmp_path / "two" / "pkg"])
    assert [len(os.listdir(tmp_path / name)) for name in ("one", "two", "three")] == [0, 0, 1]


def test_an_empty_one_is_that_of_a_process_killed_at_once(tmp_path):
    left = left_by_a_killed_process(tmp_path)
    shutil.rmtree(left)
    left.mkdir(mode=0o700)
    clear_stale(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_living_one_of_another_process_is_left_alone(tmp_path):
    reading, writing = os.pipe()
    going, ending = os.pipe()

    def work():
        os.close(ending)
        with Staging([], force=False, folders=[tmp_path / "pkg"]) as staging:
            fill(staging.path(tmp_path / "pkg"), "new")
            os.write(writing, b".")
            os.read(going, 1)
            staging.commit()

    child = fork(work)
    os.read(reading, 1)
    write_package(tmp_path / "other")
    clear_stale(tmp_path)
    assert len(list(tmp_path.glob(".ensexport-*/new/pkg/manifest.json"))) == 1
    os.close(ending)
    assert end_of(child) == 0
    assert sorted(os.listdir(tmp_path)) == ["other", "pkg"]
    assert contents(tmp_path / "pkg") == package("new")
    for descriptor in (reading, writing, going):
        os.close(descriptor)


def test_a_living_one_of_this_process_is_left_alone(tmp_path):
    with Staging([tmp_path / "a.onnx"], force=False) as staging:
        staging.path(tmp_path / "a.onnx").write_text("new")
        with Staging([tmp_path / "b.onnx"], force=False) as other:
            other.path(tmp_path / "b.onnx").write_text("new")
            other.commit()
        staging.commit()
    assert sorted(os.listdir(tmp_path)) == ["a.onnx", "b.onnx"]


def test_a_process_that_was_forked_meanwhile_removes_nothing(tmp_path):
    with Staging([tmp_path / "a.onnx"], force=False) as staging:

        def work():
            remove_rooms()
            staging.__exit__(None, None, None)

        staging.path(tmp_path / "a.onnx").write_text("new")
        assert run(work) == 0
        staging.commit()
    assert contents(tmp_path) == {"a.onnx": b"new"}


def as_a_file(left):
    shutil.rmtree(left)
    left.write_text("mine")


def as_a_link(left):
    left.rename(left.with_name("elsewhere"))
    left.symlink_to("elsewhere")


def with_foreign_content(left):
    (left / "thesis.txt").write_text("mine")


def under_another_name(left):
    left.rename(left.with_name(f"{left.name}0"))


def of_another_machine(left):
    left.rename(left.with_name(".ensexport-" + "0" * 16 + left.name[-16:]))


def kept(left):
    left.rename(left.with_name(".ensexport-kept-0123456789abcdef"))


LOOK_ALIKE = (as_a_file, as_a_link, with_foreign_content, under_another_name, of_another_machine, kept)


@pytest.mark.parametrize("change", LOOK_ALIKE, ids=lambda change: change.__name__)
def test_what_only_looks_like_one_is_left_alone(tmp_path, change):
    change(left_by_a_killed_process(tmp_path))
    before = contents(tmp_path)
    write_files(tmp_path / "a.onnx")
    assert contents(tmp_path) == before | files("new", ["a.onnx", "a.onnx.data"])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to give a folder away")
def test_one_of_another_user_is_left_alone(tmp_path):
    left = left_by_a_killed_process(tmp_path)
    os.chown(left, 65534, 65534)
    clear_stale(tmp_path)
    assert left.exists()


def test_links_inside_are_removed_and_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    left = left_by_a_killed_process(tmp_path)
    (left / "new" / "link").symlink_to(tmp_path / "mine")
    shutil.rmtree(left / "replaced")
    (left / "replaced").symlink_to(tmp_path / "mine")
    clear_stale(tmp_path)
    assert contents(tmp_path) == {"mine/thesis.txt": b"mine"}


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EBADF, errno.ENOLCK], ids=errno.errorcode.get)
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    left = left_by_a_killed_process(tmp_path)
    before = contents(tmp_path)

    def flock(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    with Staging([tmp_path / "a.onnx"], force=False) as staging:
        staging.path(tmp_path / "a.onnx").write_text("new")
        names = [path.name for path in tmp_path.glob(".ensexport-*") if path != left]
        assert [name.startswith(".ensexport-unlocked-") for name in names] == [True]
        monkeypatch.undo()
        clear_stale(tmp_path)  # a run that gets locks does not take it for a dead one
        assert contents(left) == {}
        staging.commit()
    assert contents(tmp_path) == {"a.onnx": b"new"}
    assert before


def test_a_system_without_locks(tmp_path, monkeypatch):
    left = left_by_a_killed_process(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "fcntl", None)
    write_package(tmp_path / "pkg")
    assert sorted(os.listdir(tmp_path)) == [left.name, "pkg"]


@pytest.mark.parametrize("taken", ["locked", "removed", "replaced"])
def test_a_new_one_that_a_scan_takes_away_is_made_anew(tmp_path, monkeypatch, taken):
    """A scan may come between making and locking: then it holds the lock, or has removed the folder."""
    real, held = rooms._locked, []

    def locked(folder, **options):
        if held:
            return real(folder, **options)
        held.append(real(folder))
        if taken == "locked":
            return real(folder)  # raises
        folder.rmdir()
        if taken == "replaced":
            folder.mkdir()
            return held[0]
        os.close(held[0])
        return real(folder)  # raises

    monkeypatch.setattr(rooms, "_locked", locked)
    told = []
    monkeypatch.setattr(rooms, "_listeners", [told.append])
    with Staging([tmp_path / "a.onnx"], force=False) as staging:
        assert staging.path(tmp_path / "a.onnx").parent.parent == told[1]
        staging.path(tmp_path / "a.onnx").write_text("new")
        staging.commit()
    if taken == "locked":
        os.close(held[0])
    assert len(told) == 2
    assert contents(tmp_path) == {"a.onnx": b"new"}


def killed_in(folder, work, *, at):
    """Do `work` in a process that is killed at the `at`-th rename, before it."""
    turn = []
    real = os.rename

    def rename(source, target):
        turn.append(target)
        if len(turn) == at:
            die()
        real(source, target)

    def killed():
        system._renameat2 = lambda: None
        os.rename = rename
        work()

    assert run(killed) == -signal.SIGKILL


def test_an_old_folder_that_was_moved_away_is_put_back(tmp_path):
    target = tmp_path / "pkg"
    write_package(target, text="old")
    killed_in(tmp_path, lambda: write_package(target, force=True), at=2)
    assert not target.exists()
    Staging([tmp_path / "a.onnx"], force=False)
    assert contents(tmp_path) == {f"pkg/{name}": data for name, data in package("old").items()}


def test_an_old_folder_is_not_put_back_in_place_of_a_new_one(tmp_path):
    target = tmp_path / "pkg"
    write_package(target, text="old")
    killed_in(tmp_path, lambda: write_package(target, force=True), at=2)
    fill_by_hand = tmp_path / "pkg"
    fill_by_hand.mkdir()
    fill(fill_by_hand, "by hand")
    Staging([tmp_path / "a.onnx"], force=False)
    assert contents(tmp_path) == {f"pkg/{name}": data for name, data in package("by hand").items()}


@pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
def test_external_data_without_its_new_graph_is_taken_back(tmp_path, force):
    """Two renames: killed between them, the new data lies beside the old graph."""
    target = tmp_path / "e.onnx"
    if force:
        write_files(target, text="old")
    name = "replace" if force else "link"
    real, made = getattr(os, name), []

    def call(source, place):
        if Path(place) == target:
            made.append(place)
            die()
        real(source, place)

    def work():
        setattr(os, name, call)
        write_files(target, force=force)

    assert run(work) == -signal.SIGKILL
    assert (tmp_path / "e.onnx.data").read_text() == "new e.onnx.data"
    Staging([tmp_path / "a.onnx"], force=False)
    assert contents(tmp_path) == (files("old", ["e.onnx", "e.onnx.data"]) if force else {})


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "1", "[1]", "[{}]", '[{"name": "../x", "is_target": true, "is_folder": true, "mark": [1]}]',
        '[{"name": "..", "is_target": true, "is_folder": true, "mark": [1]}]', "[" * 100_000, "é",
        '[{"name": "x", "is_target": true, "is_folder": true, "mark": 1}]',
    ],
)  # fmt: skip
def test_a_journal_that_says_nothing(tmp_path, text):
    left = left_by_a_killed_process(tmp_path)
    (left / "journal").write_text(text)
    clear_stale(tmp_path)
    assert os.listdir(tmp_path) == []


def test_file_names_of_any_bytes(tmp_path):
    name = os.fsdecode(b"\xff\n\xe2\x82\xac")
    write_package(tmp_path / name, text="old")
    killed_in(tmp_path, lambda: write_package(tmp_path / name, force=True), at=2)
    Staging([tmp_path / "a.onnx"], force=False)
    assert contents(tmp_path / name) == package("old")


def test_what_an_exception_on_the_way_out_leaves_is_removed_at_the_end(tmp_path):
    staging = Staging([tmp_path / "a.onnx"], force=False)
    with contextlib.suppress(KeyboardInterrupt):
        staging.__enter__()
        raise KeyboardInterrupt
    assert len(os.listdir(tmp_path)) == 1
    remove_rooms()
    assert os.listdir(tmp_path) == []


def test_a_parent_process_removes_what_its_child_left(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(rooms, "_listeners", [])
    tell_folders(told.append)
    write_package(tmp_path / "pkg", text="old")
    with Staging([], force=True, folders=[tmp_path / "pkg"]):
        pass
    assert {folder.parent for folder in told} == {tmp_path}
    killed_in(tmp_path, lambda: write_package(tmp_path / "pkg", force=True), at=2)
    (left,) = tmp_path.glob(".ensexport-*")
    remove_room(left)
    assert contents(tmp_path / "pkg") == package("old")
    assert os.listdir(tmp_path) == ["pkg"]
    remove_room(left)  # nothing is left to do


def test_renames_wait_for_those_of_another_run(tmp_path, monkeypatch):
    reading, writing = os.pipe()

    def work():
        with rooms.alone_in(tmp_path):
            os.write(writing, b".")
            time.sleep(0.3)
            (tmp_path / "seen").touch()

    child = fork(work)
    os.read(reading, 1)
    with rooms.alone_in(tmp_path):
        assert (tmp_path / "seen").exists()
    assert end_of(child) == 0
    os.close(reading)
    os.close(writing)


def test_renames_go_on_where_another_program_holds_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(rooms, "_WAIT_S", 0.05)
    with rooms.alone_in(tmp_path):
        write_package(tmp_path / "pkg")
    assert contents(tmp_path / "pkg") == package("new")


def test_names_of_machines(monkeypatch):
    here = rooms._machine()
    assert [len(token) for token in here] == [8, 8]
    assert rooms._machine.__wrapped__() == here
    monkeypatch.setattr(os, "uname", lambda: type("Uname", (), {"nodename": "elsewhere"}))
    other = rooms._machine.__wrapped__()
    assert (other[0] == here[0], other[1] == here[1]) == (Path("/proc/sys/kernel").exists(), False)


def test_a_socket_with_such_a_name(tmp_path, monkeypatch):
    left = left_by_a_killed_process(tmp_path)
    shutil.rmtree(left)
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(left.name)
    clear_stale(tmp_path)
    assert os.listdir(tmp_path) == [left.name]


def test_a_parent_that_cannot_be_read(tmp_path):
    with pytest.raises(OutputError, match="does not exist"):
        Staging([tmp_path / "no" / "a.onnx"], force=False)
    clear_stale(tmp_path / "no")
    (tmp_path / "file").write_text(json.dumps({}))
    clear_stale(tmp_path / "file")


def test_an_old_folder_that_a_server_reads_is_put_back(tmp_path):
    target = tmp_path / "repository" / "fraud"
    target.parent.mkdir()
    write_package(target, text="old")

    def work():
        with Staging([], folders=[target], force=True, watched=[target.parent]) as staging:
            fill(staging.path(target), "new")
            staging.commit()

    killed_in(tmp_path, work, at=2)
    assert os.listdir(target.parent) == []
    Staging([], folders=[target], force=True, watched=[target.parent])
    assert contents(target) == package("old")
    assert os.listdir(tmp_path) == ["repository"]
