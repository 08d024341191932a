"""Signals at random moments while small files and folders are staged and put in place."""

import os
import signal

import pytest

from ensexport.cli.interrupts import Interrupts, Terminated
from ensexport.staging import remove_rooms
from tests.faults.cases import CASES
from tests.faults.counting import Count, times
from tests.faults.packages import contents
from tests.faults.processes import Moments, begun, seconds, signal_after

pytestmark = [pytest.mark.faults, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


def moments(case, folder):
    """Random moments over the whole work, more of them in its second half, where things are put in place."""

    whole = seconds(lambda: case.work(folder), prepare=lambda: case.prepare(folder))
    return Moments(1.1 * whole, (0.4 * whole, 1.1 * whole))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_kill_at_any_moment(tmp_path, monkeypatch, case):
    counted = Count("Staging, random moments", "SIGKILL")
    case.take_away(monkeypatch)
    drawn = moments(case, tmp_path)
    for _ in range(times(25 if case.are_files else 40)):
        case.prepare(tmp_path)
        end = signal_after(begun(lambda: case.work(tmp_path)), signal.SIGKILL, drawn.draw())
        assert end in (0, -signal.SIGKILL)
        drawn.tell(is_hit=end != 0)
        was_whole = case.are_files or case.is_each_whole(tmp_path, or_absent=case.is_bare)
        case.recovered(tmp_path)
        counted.add(
            is_hit=end != 0,
            is_whole=was_whole and case.is_each_whole(tmp_path),
            is_clean=not any(name.startswith(".") for name in os.listdir(tmp_path)),
        )
        assert case.next_run_works(tmp_path)
    counted.check(at_least=times(5))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interruption_at_any_moment(tmp_path, monkeypatch, case, number):
    counted = Count("Staging, random moments", number.name)
    case.take_away(monkeypatch)
    drawn = moments(case, tmp_path)

    def work(begin):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # once the handlers are given back it ends the child, as SIGTERM
        try:
            with Interrupts().caught():
                begin()
                case.work(tmp_path)
        except (KeyboardInterrupt, Terminated):
            return 3
        finally:
            remove_rooms()
        return 0

    for _ in range(times(15)):
        case.prepare(tmp_path)
        end = signal_after(work, number, drawn.draw())
        assert end in (0, 3, -number)  # the last: it came when all was done and the handlers were given back
        drawn.tell(is_hit=end == 3)
        found = contents(tmp_path)
        counted.add(is_hit=end == 3, is_whole=case.is_whole(tmp_path), is_clean=found in (case.old, case.new))
    counted.check()
