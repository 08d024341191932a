"""Every call that changes a folder fails once, in turn: afterwards the old or the new is there, and nothing else."""

import contextlib
import errno
import os
import signal
from itertools import count

import pytest

from ensexport.errors import OutputError
from tests.faults.calls import ALLOCATING, Calls, raises
from tests.faults.cases import CASES
from tests.faults.counting import Count
from tests.faults.packages import contents
from tests.faults.processes import run

pytestmark = pytest.mark.faults

FAULTS = {
    "full disk (ENOSPC)": (errno.ENOSPC, False),
    "broken disk (EIO)": (errno.EIO, False),
    "no permission (EACCES)": (errno.EACCES, False),
    "full disk that stays full": (errno.ENOSPC, True),
}


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_call_that_fails(folder, monkeypatch, case, fault):
    number, is_lasting = FAULTS[fault]
    counted = Count("each call of Staging in turn", fault)
    case.take_away(monkeypatch)
    for turn in count(1):
        case.prepare(folder)
        names = {"names": ALLOCATING} if is_lasting else {}
        calls, error = Calls(folder, turn, raises(number), is_lasting=is_lasting, **names), None
        with calls.counted():
            try:
                case.work(folder)
            except OutputError as caught:
                error = caught
        if not calls.failed:
            assert error is None
            break
        found = contents(folder)
        counted.add(
            is_hit=True,
            is_whole=case.is_whole(folder) and (error is None or found == case.old),
            is_clean=found == (case.new if error is None else case.old),
        )
        assert error is None or os.strerror(number) in str(error)
        assert case.next_run_works(folder)
    counted.check(at_least=15)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_interruption_at_any_call(folder, monkeypatch, case):
    counted = Count("each call of Staging in turn", "KeyboardInterrupt")
    case.take_away(monkeypatch)
    for turn in count(1):
        case.prepare(folder)
        calls = Calls(folder, turn, interrupt)
        with calls.counted(), contextlib.suppress(KeyboardInterrupt):
            case.work(folder)
        if not calls.failed:
            break
        counted.add(is_hit=True, is_whole=case.is_whole(folder), is_clean=contents(folder) in (case.old, case.new))
    counted.check(at_least=15)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_kill_at_any_call(folder, monkeypatch, case):
    counted = Count("each call of Staging in turn", "SIGKILL")
    case.take_away(monkeypatch)
    for turn in count(1):
        case.prepare(folder)

        def work(turn=turn):
            with Calls(folder, turn, lambda: os.kill(os.getpid(), signal.SIGKILL)).counted():
                case.work(folder)

        end = run(work)
        if end != -signal.SIGKILL:
            assert end == 0
            break
        was_whole = case.are_files or case.is_each_whole(folder, or_absent=case.is_bare)
        case.recovered(folder)
        counted.add(
            is_hit=True,
            is_whole=was_whole and case.is_each_whole(folder),
            is_clean=not any(name.startswith(".") for name in os.listdir(folder)),
        )
        assert case.next_run_works(folder)
    counted.check(at_least=15)
