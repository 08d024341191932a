"""Whole commands that are killed, interrupted, doubled or refused by the system: `verify` takes what stands there."""

import errno
import functools
import os
import signal
from itertools import count

import pytest

from ensexport.staging import Staging
from tests.faults.calls import Calls, raises
from tests.faults.commands import command, is_verified, make
from tests.faults.counting import Count, times
from tests.faults.packages import contents
from tests.faults.places import can_mount, small_disk
from tests.faults.processes import Moments, run, seconds, signal_after, together

pytestmark = [pytest.mark.faults, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


@pytest.fixture(scope="module")
def project(module_folder):
    before = os.getcwd()
    yield make(module_folder)
    os.chdir(before)


def swap(project, *, force):
    return command(*project.swap("pkg", *(["--force"] if force else [])))


def pack(project, *, force):
    return command(*project.pack("pkg", *(["--force"] if force else [])))


def moments(project, work, *, force):
    """Random moments over a command, half of them near its end, where it writes."""
    whole = seconds(work, prepare=lambda: project.prepare(is_replacing=force), repeats=3)
    return Moments(1.05 * whole, (0.7 * whole, 1.05 * whole))


def next_run_begins(project):
    """What the next run does first."""
    Staging([], folders=[project.out / "pkg"], force=True)


KILLS = {
    "swap, --force": (swap, True, 150),
    "swap": (swap, False, 50),
    "pack, --force": (pack, True, 10),
}


@pytest.mark.parametrize(("which", "force", "number"), KILLS.values(), ids=KILLS)
def test_a_kill_at_any_moment(project, which, force, number):
    counted = Count(which.__name__ + " -o pkg" + (" --force" if force else ""), "SIGKILL")
    work = which(project, force=force)
    drawn = moments(project, work, force=force)
    for turn in range(times(number)):
        project.prepare(is_replacing=force)
        end = signal_after(work, signal.SIGKILL, drawn.draw())
        assert end in (0, -signal.SIGKILL)
        drawn.tell(is_hit=end != 0)
        was_whole = project.is_whole(is_replacing=force)  # at once, not only when the next run has cleaned up
        next_run_begins(project)
        counted.add(
            is_hit=end != 0,
            is_whole=was_whole and project.is_whole(is_replacing=force),
            is_clean=project.is_clean("pkg"),
        )
        if turn % 25 == 0:
            assert run(swap(project, force=True)) == 0
            assert is_verified(project.out / "pkg")
            assert project.is_clean("pkg")
    counted.check(at_least=times(0.2 * number))


SIGNALS = {
    "swap, --force": (swap, True, 40),
    "swap": (swap, False, 15),
    "pack, --force": (pack, True, 4),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize(("which", "force", "trials"), SIGNALS.values(), ids=SIGNALS)
def test_an_interruption_at_any_moment(project, which, force, trials, number):
    counted = Count(which.__name__ + " -o pkg" + (" --force" if force else ""), number.name)
    work = which(project, force=force)
    drawn = moments(project, work, force=force)
    wanted = 130 if number == signal.SIGINT else 143
    for _ in range(times(trials)):
        project.prepare(is_replacing=force)
        end = signal_after(work, number, drawn.draw())
        assert end in (0, wanted)
        drawn.tell(is_hit=end != 0)
        counted.add(is_hit=end != 0, is_whole=project.is_whole(is_replacing=force), is_clean=project.is_clean("pkg"))
    counted.check()


@pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
def test_pairs(project, force):
    counted = Count("two times swap -o pkg" + (" --force" if force else ""), "each other")
    more = ["--force"] if force else []
    works = [command(*project.swap("pkg", *more, member=member)) for member in (1, 2)]
    for _ in range(times(50)):
        project.prepare(is_replacing=force)
        ends = together(*works)
        assert sorted(ends) == ([0, 0] if force else [0, 7])
        is_whole = is_verified(project.out / "pkg") and contents(project.out / "pkg") != project.old
        counted.add(is_hit=True, is_whole=is_whole, is_clean=project.is_clean("pkg"))
    counted.check()


FAULTS = {"full disk (ENOSPC)": errno.ENOSPC, "broken disk (EIO)": errno.EIO, "no permission (EACCES)": errno.EACCES}
FULL, BROKEN, DENIED = FAULTS
# By which command, and every how many calls one fails: packing takes a second, so that all of its calls take minutes.
FAILING = {
    "swap, --force, ENOSPC": (swap, True, FULL, 1),
    "swap, EIO": (swap, False, BROKEN, 4),
    "swap, --force, EACCES": (swap, True, DENIED, 4),
    "pack, --force, ENOSPC": (pack, True, FULL, 8),
}
FAILING_ALL = {
    "swap, EIO, all": (swap, False, BROKEN, 1),
    "swap, --force, EACCES, all": (swap, True, DENIED, 1),
    "pack, ENOSPC, all": (pack, False, FULL, 1),
}


@pytest.mark.parametrize(
    ("which", "force", "fault", "step"),
    [pytest.param(*case, id=name) for name, case in FAILING.items()]
    + [pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in FAILING_ALL.items()],
)
def test_a_call_that_fails(project, which, force, fault, step):
    counted = Count("each call of " + which.__name__ + " -o pkg" + (" --force" if force else ""), fault)
    work = which(project, force=force)

    def failing(turn):
        calls = Calls(project.out, turn, raises(FAULTS[fault]))
        with calls.counted():
            code = work()
        return code if calls.failed else 50 + code

    for turn in count(1, step):
        project.prepare(is_replacing=force)
        end = run(functools.partial(failing, turn))
        if end >= 50:
            assert end == 50
            break
        assert end in (0, 7)
        is_old = contents(project.out / "pkg") == project.old if force else not (project.out / "pkg").exists()
        counted.add(
            is_hit=True,
            is_whole=is_old if end else project.is_whole(is_replacing=force) and not is_old,
            is_clean=project.is_clean("pkg"),
        )
    counted.check(at_least=60 // step)


@pytest.mark.skipif(not can_mount(), reason="needs root to mount a tmpfs")
@pytest.mark.parametrize("which", [swap, pack], ids=lambda which: which.__name__)
def test_a_disk_that_fills_up(project, which):
    counted = Count(f"{which.__name__} onto a disk too small, by pages", "full disk (tmpfs)")
    step = 1 if which is swap else 3
    for pages in range(1, 60, step):
        with small_disk(project.out / "disk", pages * 4096) as disk:
            work = command(*getattr(project, which.__name__)("disk/pkg"))
            end = run(work)
            assert end in (0, 7)
            is_there = (disk / "pkg").exists()
            counted.add(
                is_hit=end == 7,
                is_whole=is_verified(disk / "pkg") if end == 0 else not is_there,
                is_clean=os.listdir(disk) == ["pkg"] * is_there,
            )
        if end == 0:
            break
    assert end == 0
    counted.check(at_least=4)


@pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
def test_a_limit_on_the_size_of_files(project, force):
    import resource

    counted = Count("swap -o pkg" + (" --force" if force else "") + ", a limit on file sizes", "RLIMIT_FSIZE")
    work = swap(project, force=force)

    def limited(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return work()

    for limit in range(0, 20_000, 1000):
        project.prepare(is_replacing=force)
        end = run(functools.partial(limited, limit))
        assert end in (0, 7)
        is_old = contents(project.out / "pkg") == project.old if force else not (project.out / "pkg").exists()
        counted.add(
            is_hit=end == 7,
            is_whole=is_old if end else project.is_whole(is_replacing=force) and not is_old,
            is_clean=project.is_clean("pkg"),
        )
    assert end == 0
    counted.check(at_least=4)


def a_package(project):
    project.prepare(is_replacing=True)


def a_folder_of_somebody(project):
    (project.out / "pkg").mkdir()
    (project.out / "pkg" / "thesis.txt").write_text("mine")


def a_file(project):
    (project.out / "pkg").write_text("mine")


def no_parent(project):
    project.out.rmdir()


REFUSED = {
    "package": (a_package, False, "it exists"),
    "folder": (a_folder_of_somebody, True, "it is a folder without a manifest.json of ensexport"),
    "file": (a_file, True, "it is a file, and the output is a folder"),
    "no parent": (no_parent, True, "does not exist. Create the folder first."),
}


@pytest.mark.parametrize(("make_one", "force", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("which", [swap, pack], ids=lambda which: which.__name__)
def test_what_is_in_the_way_stays(project, tmp_path, which, make_one, force, message):
    project.prepare(is_replacing=False)
    make_one(project)
    before = contents(project.out) if project.out.exists() else None
    said = tmp_path / "said"
    more = ["--force"] if force else []
    assert run(command(*getattr(project, which.__name__)("pkg", *more), said=str(said))) == 7
    assert message in said.read_text().replace("\n", " ")
    assert (contents(project.out) if project.out.exists() else None) == before
    project.out.mkdir(exist_ok=True)
