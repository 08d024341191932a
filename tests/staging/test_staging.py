import errno
import os
import stat
import subprocess
import sys
import tempfile
import threading
from itertools import count
from pathlib import Path

import pytest

from ensexport.errors import OutputError, TargetExistsError, UsageError
from ensexport.staging import Staging, writing

CALLS = ("replace", "link", "fsync", "chmod", "mkdir", "open")


def contents(folder):
    """Every file below `folder`, hidden ones too, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}


def write(targets, *, force=False, text="new", beside=()):
    with Staging(targets, force=force) as staging:
        for target in targets:
            staging.path(target).write_text(f"{text} {target.name}")
        for target in beside:
            staging.path(target).with_name(f"{target.name}.data").write_text(f"{text} {target.name}.data")
        return staging.commit()


def test_files_appear_at_commit_and_the_staging_folder_goes(tmp_path):
    targets = [tmp_path / "a.onnx", tmp_path / "sub" / "b.ts"]
    (tmp_path / "sub").mkdir()
    with Staging(targets, force=False) as staging:
        for target in targets:
            assert staging.path(target).name == target.name
            staging.path(target).write_text(target.name)
            assert not target.exists()
        assert sorted(staging.commit()) == sorted(targets)
    assert contents(tmp_path) == {"a.onnx": b"a.onnx", "sub/b.ts": b"b.ts"}
    assert sorted(os.listdir(tmp_path)) == ["a.onnx", "sub"]
    assert os.listdir(tmp_path / "sub") == ["b.ts"]


@pytest.mark.parametrize(
    "error", [ValueError("stop"), KeyboardInterrupt(), SystemExit(3)], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
def test_nothing_is_left_after_an_exception_in_the_body(tmp_path, error, force):
    target = tmp_path / "a.onnx"
    if force:
        target.write_text("old")
    before = contents(tmp_path)

    def run():
        with Staging([target], force=force) as staging:
            staging.path(target).write_text("half of it")
            raise error

    with pytest.raises(type(error)):
        run()
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == sorted(before)


def test_nothing_is_left_without_a_commit(tmp_path):
    with Staging([tmp_path / "a.onnx"], force=False) as staging:
        staging.path(tmp_path / "a.onnx").write_text("x")
    assert os.listdir(tmp_path) == []


def fail_at(monkeypatch, name, number, error):
    """Make the `number`-th call of `os.name` raise `error`; returns a list that says if it did."""
    real, calls, failed = getattr(os, name), count(1), []

    def call(*args, **kwargs):
        if next(calls) == number:
            failed.append(number)
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, call)
    return failed


# What is there before, and whether --force is given: fresh files; all replaced; some new and some replaced.
BEFORE = {
    "fresh": ((), False),
    "replaced": (("a.onnx", "a.onnx.data", "b.ts"), True),
    "partly new": (("a.onnx",), True),
}


@pytest.mark.parametrize(("existing", "force"), BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["full disk", "ctrl-c"])
@pytest.mark.parametrize("name", CALLS)
def test_after_a_fault_at_any_step_all_files_are_old_or_all_are_new(
    tmp_path, monkeypatch, name, error, existing, force
):
    targets = [tmp_path / "a.onnx", tmp_path / "b.ts"]
    names = ("a.onnx", "a.onnx.data", "b.ts")
    old = {name: f"old {name}".encode() for name in existing}
    new = {name: f"new {name}".encode() for name in names}
    for number in count(1):
        for path in tmp_path.iterdir():
            path.unlink()
        for file, data in old.items():
            (tmp_path / file).write_bytes(data)
        with monkeypatch.context() as patch:
            failed = fail_at(patch, name, number, error)
            message = outcome(lambda: write(targets, force=force, beside=targets[:1]))
        # Without a message: what failed was not needed, such as a hard link where a copy does as well. An
        # interruption may also come when all is done and only the staging folder is still to go.
        after = contents(tmp_path)
        assert after in ((old, new) if message == "KeyboardInterrupt" else (old if message else new,))
        assert sorted(os.listdir(tmp_path)) == sorted(after)
        if message and message != "KeyboardInterrupt":
            assert "No space left on device. Free some space." in message
        if not failed:
            assert not message
            break
    assert number < 60


def outcome(run):
    """The text of the error `run` ends with, or an empty text."""
    try:
        run()
    except OutputError as error:
        return str(error)
    except KeyboardInterrupt:
        return "KeyboardInterrupt"
    return ""


def test_a_fault_that_does_not_go_away_loses_nothing(tmp_path, monkeypatch):
    targets = [tmp_path / "a.onnx", tmp_path / "b.ts"]
    write(targets, text="old")
    real, calls = os.replace, count(1)

    def replace(source, target):
        if next(calls) > 1:
            raise OSError(errno.EIO, "broken")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OutputError, match="cannot put back what was there") as caught:
        write(targets, force=True)
    kept = [Path(text.strip(" .")) for text in str(caught.value).split("kept: ")[1].split(",")]
    assert [path.read_text() for path in kept] == ["old a.onnx"]
    assert (tmp_path / "b.ts").read_text() == "old b.ts"


@pytest.mark.parametrize(("number", "which"), [(1, 0), (2, 0), (3, 0), (4, 1)])
def test_a_staging_folder_that_cannot_be_made_leaves_none_behind(tmp_path, monkeypatch, number, which):
    targets = [tmp_path / "one" / "a.onnx", tmp_path / "two" / "b.ts"]
    for target in targets:
        target.parent.mkdir()
    fail_at(monkeypatch, "mkdir", number, OSError(errno.EROFS, "read-only"))
    with pytest.raises(OutputError, match=f"cannot write '{targets[which]}': Read-only file system"):
        write(targets)
    assert contents(tmp_path) == {}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["one", "two"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002], ids=oct)
@pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
def test_the_mode_is_the_one_a_plain_open_would_give(tmp_path, mask, force):
    # In a process of its own: the umask is one for all threads.
    code = f"""
import os
from pathlib import Path
from ensexport.staging import Staging
os.umask({mask})
target = Path({str(tmp_path / "a.onnx")!r})
with Staging([target], force={force}) as staging:
    staging.path(target).touch(mode=0o600)
    staging.commit()
"""
    if force:
        (tmp_path / "a.onnx").touch(mode=0o640)
    subprocess.run([sys.executable, "-c", code], check=True)
    assert stat.S_IMODE((tmp_path / "a.onnx").stat().st_mode) == 0o666 & ~mask


def test_an_existing_target_is_refused_without_force_and_keeps_its_bytes(tmp_path):
    target = tmp_path / "a.onnx"
    target.write_text("old")
    with pytest.raises(TargetExistsError, match=f"cannot write '{target}': it exists") as caught:
        Staging([target], force=False)
    assert "--force" in caught.value.hint
    assert caught.value.exit_code == 7
    assert contents(tmp_path) == {"a.onnx": b"old"}


def test_a_target_that_appears_meanwhile_is_not_overwritten(tmp_path):
    targets = [tmp_path / "a.onnx", tmp_path / "b.ts"]
    with Staging(targets, force=False) as staging:
        for target in targets:
            staging.path(target).write_text("new")
        targets[1].write_text("somebody else's")
        with pytest.raises(TargetExistsError, match=r"b\.ts': it exists\. It appeared while this command ran"):
            staging.commit()
    assert contents(tmp_path) == {"b.ts": b"somebody else's"}


@pytest.mark.parametrize("force", [False, True], ids=["kept", "force"])
def test_a_file_beside_the_target_is_moved_too_and_protected(tmp_path, force):
    target = tmp_path / "a.onnx"
    (tmp_path / "a.onnx.data").write_text("old")
    if force:
        assert write([target], force=True, beside=[target])[0].name == "a.onnx.data"
        assert contents(tmp_path) == {"a.onnx": b"new a.onnx", "a.onnx.data": b"new a.onnx.data"}
        return
    with pytest.raises(TargetExistsError, match=r"a.onnx.data': it exists\. Use --force"):
        write([target], beside=[target])
    assert contents(tmp_path) == {"a.onnx.data": b"old"}


def test_files_beside_a_target_are_there_before_it(tmp_path, monkeypatch):
    made = []
    real = os.link

    def link(source, target):
        made.append(Path(target).name)
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    write([tmp_path / "z.onnx", tmp_path / "a.ts"], beside=[tmp_path / "z.onnx"])
    assert made == ["z.onnx.data", "z.onnx", "a.ts"]


@pytest.mark.parametrize("appears", [False, True], ids=["free", "taken"])
def test_a_file_system_without_hard_links(tmp_path, monkeypatch, appears):
    def link(source, target):
        if appears:
            Path(target).write_text("somebody else's")
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", link)
    target = tmp_path / "a.onnx"
    if appears:
        with pytest.raises(TargetExistsError, match="It appeared"):
            write([target])
        assert contents(tmp_path) == {"a.onnx": b"somebody else's"}
        return
    write([target])
    assert contents(tmp_path) == {"a.onnx": b"new a.onnx"}
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no")))
    write([target], force=True, text="newer")
    assert contents(tmp_path) == {"a.onnx": b"newer a.onnx"}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP], ids=["EINVAL", "ENOTSUP"])
def test_a_file_system_that_cannot_sync_folders(tmp_path, monkeypatch, number):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "cannot")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write([tmp_path / "a.onnx"])
    assert contents(tmp_path) == {"a.onnx": b"new a.onnx"}


def test_names_that_look_like_those_of_replaced_files(tmp_path):
    targets = [tmp_path / name for name in ("a", "a.old", ".replaced", ".mode")]
    write(targets, text="old")
    write(targets[:2], force=True, text="new")
    assert contents(tmp_path) == {
        "a": b"new a", "a.old": b"new a.old", ".replaced": b"old .replaced", ".mode": b"old .mode",
    }  # fmt: skip


@pytest.mark.parametrize("pointee", ["there", "missing"])
def test_a_link_is_replaced_not_followed(tmp_path, monkeypatch, pointee):
    target, other = tmp_path / "a.onnx", tmp_path / "other"
    if pointee == "there":
        other.write_text("kept")
    target.symlink_to(other)
    with pytest.raises(TargetExistsError):
        write([target])
    with monkeypatch.context() as patch:
        fail_at(patch, "replace", 2, OSError(errno.EIO, "broken"))
        with pytest.raises(OutputError):
            write([target, tmp_path / "b.ts"], force=True)
    assert os.readlink(target) == str(other)
    write([target], force=True)
    assert target.read_text() == "new a.onnx"
    assert not target.is_symlink()
    assert other.exists() == (pointee == "there")


def test_a_folder_is_no_target(tmp_path):
    (tmp_path / "a.onnx").mkdir()
    for force in (False, True):
        with pytest.raises(OutputError, match=r"a\.onnx': it is a folder"):
            Staging([tmp_path / "a.onnx"], force=force)


def test_a_missing_parent_and_one_that_is_a_file(tmp_path):
    with pytest.raises(OutputError, match=f"'{tmp_path}/no' does not exist"):
        Staging([tmp_path / "no" / "a.onnx"], force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=f"'{tmp_path}/file' is not a folder"):
        Staging([tmp_path / "file" / "a.onnx"], force=True)
    with pytest.raises(OutputError, match="File name too long"):
        Staging([tmp_path / ("a" * 300) / "a.onnx"], force=True)


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_a_parent_without_permission():
    # In a process of its own, which gives up root's right to write everywhere.
    code = """
import os, sys
from pathlib import Path
from ensexport.errors import OutputError
from ensexport.staging import Staging
if os.getuid() == 0:
    os.setuid(65534)
try:
    Staging([Path(sys.argv[1])], force=False)
except OutputError as error:
    print(error)
"""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        target = f"{folder}/a.onnx"
        done = subprocess.run([sys.executable, "-c", code, target], check=True, capture_output=True, text=True)
    assert (
        done.stdout == f"cannot write '{target}': '{folder}' may not be written to. Check the folder's permissions.\n"
    )


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc, the one folder root cannot write to either")
def test_a_parent_that_refuses_new_files():
    target = Path("/proc/self/task/a.onnx")
    with pytest.raises(OutputError, match=r"cannot write '/proc/self/task/a\.onnx'"):
        write([target])


@pytest.mark.parametrize("second", ["a.onnx", "./a.onnx", "sub/../a.onnx"])
def test_the_same_target_twice(tmp_path, monkeypatch, second):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    with pytest.raises(UsageError, match="is named twice as output"):
        Staging([Path("b.ts"), Path("a.onnx"), Path(second)], force=True)


def test_a_target_that_was_never_written(tmp_path):
    targets = [tmp_path / "a.onnx", tmp_path / "b.ts"]
    with Staging(targets, force=False) as staging:
        staging.path(targets[0]).write_text("x")
        with pytest.raises(OutputError, match=r"cannot write '.*b\.ts': No such file"):
            staging.commit()
    assert contents(tmp_path) == {}


def test_a_change_of_the_current_directory_moves_nothing(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    target = Path("a.onnx")
    with Staging([target], force=False) as staging:
        staging.path(target).write_text("x")
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert staging.commit() == [target]
    assert contents(tmp_path) == {"a.onnx": b"x"}


@pytest.mark.parametrize("force", [False, True], ids=["first one wins", "force"])
def test_many_writers_of_one_target_leave_one_whole_file(tmp_path, force):
    target = tmp_path / "a.onnx"
    begin = threading.Barrier(8)
    outcomes = []

    def run(number):
        with Staging([target], force=force) as staging:
            staging.path(target).write_text(f"{number}" * 10_000)
            begin.wait()
            try:
                staging.commit()
                outcomes.append(number)
            except TargetExistsError:
                pass

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ["a.onnx"]
    assert target.read_text() in {f"{number}" * 10_000 for number in outcomes}
    assert force or len(outcomes) == 1


@pytest.mark.parametrize(
    ("number", "text", "hint"),
    [
        (errno.ENOSPC, "No space left on device", "Free some space."),
        (errno.EFBIG, "File too large", "ulimit -f"),
        (errno.EACCES, "Permission denied", "permissions"),
        (errno.EIO, "Input/output error", ""),
    ],
    ids=["full", "limit", "permission", "broken"],
)
def test_the_operating_systems_refusals_name_target_and_reason(number, text, hint):
    with pytest.raises(OutputError, match=f"cannot write 'a.onnx': {text}") as caught, writing(Path("a.onnx")):
        raise OSError(number, "whatever")
    assert hint in caught.value.hint
    assert isinstance(caught.value.__cause__, OSError)


def test_an_error_without_a_number_keeps_its_text():
    with pytest.raises(OutputError, match=r"cannot write 'a\.onnx': same file"), writing(Path("a.onnx")):
        raise OSError("same file")
