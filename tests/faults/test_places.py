"""Disks that fill up, limits, and folders that cannot be written to, as the system itself reports them."""

import errno
import os
import shutil
import stat

import pytest

from ensexport.errors import OutputError
from ensexport.staging import Staging, writing
from tests.faults.counting import Count
from tests.faults.packages import MANIFEST, contents, fill, package, write_package
from tests.faults.places import can_mount, small_disk
from tests.faults.processes import run

pytestmark = [pytest.mark.faults, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]
PAGE = 4096


def write_large(target, *, text, force):
    """A package of two files of 16 pages each."""
    with Staging([], folders=[target], force=force) as staging, writing(target):
        for name in ("model.onnx", "model.ts"):
            (staging.path(target) / name).write_bytes(text.encode() * (16 * PAGE // len(text)))
        (staging.path(target) / "manifest.json").write_text(MANIFEST)
        staging.commit()


def attempt(write):
    """The error, or None."""
    try:
        write()
    except OutputError as error:
        return error
    return None


@pytest.mark.skipif(not can_mount(), reason="needs root to mount a tmpfs")
@pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
def test_a_disk_that_fills_up(tmp_path, force):
    counted = Count("a disk too small, by pages", "full disk (tmpfs)")
    needed = 2 * 33 if force else 33
    for pages in range(2 + 33 * force, needed + 12):
        with small_disk(tmp_path / "disk", pages * PAGE) as disk:
            if force and attempt(lambda disk=disk: write_large(disk / "pkg", text="old.", force=False)):
                continue  # not even the old one has room
            before = contents(disk)
            error = attempt(lambda disk=disk: write_large(disk / "pkg", text="new.", force=force))
            found = contents(disk)
            assert error is None or "No space left on device. Free some space." in str(error)
            counted.add(
                is_hit=error is not None,
                is_whole=found == before if error else len(found) == 3 and b"new." in found["pkg/model.ts"],
                is_clean=os.listdir(disk) == (["pkg"] if force or not error else []),
            )
    assert error is None
    counted.check(at_least=20)


@pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
def test_a_limit_on_the_size_of_files(folder, force):
    import resource

    counted = Count("a limit on file sizes, by 1,000 bytes", "RLIMIT_FSIZE")

    def work(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        error = attempt(lambda: write_large(folder / "pkg", text="new.", force=force))
        assert error is None or "File too large" in str(error), error
        return 0 if error is None else 7

    for limit in range(0, 17 * PAGE, 1000):
        shutil.rmtree(folder / "pkg", ignore_errors=True)
        if force:
            write_large(folder / "pkg", text="old.", force=False)
        before = contents(folder)
        end = run(lambda limit=limit: work(limit))
        assert end in (0, 7)
        found = contents(folder)
        counted.add(
            is_hit=end == 7,
            is_whole=found == before if end else b"new." in found["pkg/model.ts"],
            is_clean=os.listdir(folder) == (["pkg"] if force or not end else []),
        )
    assert end == 0
    counted.check(at_least=20)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002], ids=oct)
@pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
def test_modes_are_those_of_plain_files_and_folders(tmp_path, mask, force):
    if force:
        write_package(tmp_path / "pkg", text="old")
        os.chmod(tmp_path / "pkg", 0o700)

    def work():
        os.umask(mask)
        with Staging([], folders=[tmp_path / "pkg"], force=force) as staging:
            fill(staging.path(tmp_path / "pkg"), "new")
            os.chmod(staging.path(tmp_path / "pkg") / "model.ts", 0o600)
            staging.commit()

    assert run(work) == 0
    for path in (tmp_path / "pkg", *(tmp_path / "pkg").rglob("*")):
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_a_parent_that_may_not_be_written_to(folder):
    (folder / "place").mkdir(mode=0o555)

    def work():
        if os.geteuid() == 0:
            os.setuid(65534)
        error = attempt(lambda: write_package(folder / "place" / "pkg", force=True))
        return 0 if "may not be written to. Check the folder's permissions." in str(error) else 1

    assert run(work) == 0
    assert contents(folder / "place") == {}


def test_a_parent_that_refuses_while_it_is_written_to(folder):
    """Permission taken away between the first look and the move, and for good."""
    target = folder / "pkg"
    write_package(target, text="old")

    def work():
        if os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
            for path in folder.rglob("*"):
                os.chown(path, 65534, 65534)
            os.setuid(65534)
        with Staging([], folders=[target], force=True) as staging:
            fill(staging.path(target), "new")
            os.chmod(folder, 0o555)
            error = attempt(staging.commit)
            os.chmod(folder, 0o755)
        return 0 if os.strerror(errno.EACCES) in str(error) else 1

    assert run(work) == 0
    assert contents(folder) == {f"pkg/{name}": data for name, data in package("old").items()}
    assert os.listdir(folder) == ["pkg"]
