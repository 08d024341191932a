"""Two processes write the same target at the same time."""

import functools
import os

import pytest

from ensexport.errors import TargetExistsError
from tests.faults.cases import CASES
from tests.faults.counting import Count, times
from tests.faults.packages import contents
from tests.faults.processes import together

pytestmark = [pytest.mark.faults, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_pairs(folder, monkeypatch, case):
    counted = Count("two runs on one target" + (", --force" if case.is_replacing else ""), "each other")
    case.take_away(monkeypatch)

    def work(text):
        try:
            case.work(folder, text)
        except TargetExistsError:
            return 7
        return 0

    for _ in range(times(50)):
        case.prepare(folder)
        ends = together(functools.partial(work, "one"), functools.partial(work, "two"))
        assert sorted(ends) == ([0, 0] if case.is_replacing else [0, 7])
        found = contents(folder)
        wanted = [case.of(text) for end, text in zip(ends, ("one", "two"), strict=True) if end == 0]
        parts = [{name: data for name, data in found.items() if name.startswith(part)} for part in ("pkg", "e.onnx")]
        is_whole = all(
            part in [{name: data for name, data in one.items() if name in part} for one in wanted] for part in parts
        )
        counted.add(is_hit=True, is_whole=is_whole, is_clean=found.keys() == case.new.keys())
    counted.check()


def test_many_writers_of_folders_that_come_and_go(folder):
    """A target that appears and disappears between the steps of another writer's move."""
    case = CASES["folder, --force"]

    def work(text):
        for _ in range(20):
            case.work(folder, text)

    case.prepare(folder)
    assert together(*(functools.partial(work, str(number)) for number in range(4))) == [0] * 4
    assert contents(folder) in [case.of(str(number)) for number in range(4)]
