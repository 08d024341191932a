"""Time and memory of the stages."""

import sys
import threading
import time

import pytest

from ensexport import clock as clock_module
from ensexport.clock import Clock


def test_stages_are_told_timed_and_may_come_again():
    calls = []
    clock = Clock(lambda *call: calls.append(call))
    for _ in range(2):
        with clock.stage("load"):
            clock.tell("load", 1, 2)
    assert calls == [("load", 0, 0), ("load", 1, 2)] * 2
    assert list(clock.seconds) == ["load"]
    assert clock.seconds["load"] >= 0


def test_a_stage_that_fails_is_timed_too():
    clock = Clock()
    with pytest.raises(ValueError, match="no"), clock.stage("load"):
        raise ValueError("no")
    assert "load" in clock.seconds


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_memory_held_in_one_stage_shows_there_and_not_in_the_next():

    clock = Clock()
    with clock.stage("small"):
        pass
    with clock.stage("large"):
        held = bytearray(b"x") * 300_000_000
        time.sleep(0.1)
        del held
    with clock.stage("after"):
        time.sleep(0.05)
    assert clock.peak_bytes["large"] > clock.peak_bytes["small"] + 250_000_000
    assert clock.peak_bytes["after"] < clock.peak_bytes["large"] - 200_000_000


def test_an_interruption_while_a_stage_begins_is_that_interruption(monkeypatch):
    begin, before = clock_module._Watch.begin, threading.active_count()

    def interrupted(watch):
        begin(watch)
        raise KeyboardInterrupt

    monkeypatch.setattr(clock_module._Watch, "begin", interrupted)
    clock = Clock()
    with pytest.raises(KeyboardInterrupt), clock.stage("load"):
        raise AssertionError
    assert list(clock.seconds) == ["load"]
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
