"""The processes that hold the alternatives, and the arithmetic of a row."""

import itertools
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ensexport.errors import ArtifactError
from ensexport.timing.exchange import write_feed
from ensexport.timing.measure import BenchError, Worker, balanced_orders, measure, summarise, time_files
from tests.cli.projects import X, run


def test_a_ratio_is_the_median_over_the_rounds():
    packed = np.array([1.0, 2.0, 4.0, 1.0, 2.0])
    row = summarise("loop", 3 * packed, packed)
    assert (row.alternative, row.median_ms, row.ratio, row.ratio_low, row.ratio_high) == ("loop", 6000, 3, 3, 3)
    # The machine was busy in one round: its ratio is one of five, not a part of a sum.
    row = summarise("loop", np.array([3.0, 6.0, 400.0, 3.0, 6.0]), packed)
    assert row.ratio == 3
    assert row.ratio_low == 3
    assert row.ratio_high == 100


@pytest.fixture
def job(project):
    """A job for a packed `.onnx` file."""
    assert run("pack", "ckpts", "--model", "model.py:Net", "--input", X, "-o", "e.onnx").exit_code == 0
    return {
        "name": "packed", "maker": "ensexport.timing.graphs:onnx",
        "path": str(project / "e.onnx"), "provider": "cpu", "outputs": ["output"], "inputs": ["x"],
        "per_member": [], "n_members": 3, "threads": 2, "member_paths": ["nowhere.onnx"] * 3,
    }  # fmt: skip


def is_stopped(pid):
    """Look for up to a second: a signal arrives when the process gets its turn."""
    for _ in range(100):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return True
        time.sleep(0.01)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_is_stopped_between_requests_and_gone_afterwards(job, tmp_path):
    feed = {"x": np.ones((2, 4), dtype=np.float32)}
    with Worker(job, tmp_path) as worker, Worker({**job, "name": "packed-again"}, tmp_path) as again:
        pids = [worker._process.pid, again._process.pid]
        worker.wait_ready()
        again.wait_ready()
        rows = measure([worker, again], feed, blocks=3)
        assert all(is_stopped(pid) for pid in pids)
    assert [row.alternative for row in rows] == ["packed", "packed-again"]
    assert (rows[0].ratio, rows[1].ratio > 0) == (1, True)
    assert all(row.calls >= 3 and row.load_s > 0 and 20 < row.memory_mb < 1000 for row in rows)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_slow_calls_get_fewer_rounds_but_seven_at_least(job, tmp_path):
    feed = {"x": np.ones((2, 4), dtype=np.float32)}
    with Worker(job, tmp_path) as worker:
        worker.wait_ready()
        took = []
        worker.seconds = lambda feed, repeats: took.append(repeats) or 0.1 * repeats
        calls = [measure([worker], feed, blocks=30, budget_s=budget_s)[0].calls for budget_s in (None, 2.05, 0.01, 9.0)]
        assert calls == [30, 20, 7, 30]
        assert set(took) == {1}
        assert measure([worker], feed, blocks=3, budget_s=0.01)[0].calls == 3


def test_an_error_in_the_process_keeps_its_class(job, tmp_path):
    with (
        Worker({**job, "name": "loop", "maker": "ensexport.bench.session_loops:loop"}, tmp_path) as worker,
        pytest.raises(ArtifactError, match=r"nowhere\.onnx"),
    ):
        worker.wait_ready()


def test_a_run_that_fails_names_the_alternative_and_the_reason(job, tmp_path):
    with Worker(job, tmp_path) as worker:
        worker.wait_ready()
        with pytest.raises(BenchError, match=r"'packed' fails when it is run: .*InvalidArgument"):
            measure([worker], {"x": np.ones((2, 5), dtype=np.float32)}, blocks=3)


def test_a_process_that_dies_is_named_with_its_exit_code(job, tmp_path):
    with Worker(job, tmp_path) as worker:
        worker.wait_ready()
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(BenchError, match="the process of 'packed' ended with -9"):
            measure([worker], {"x": np.ones((2, 4), dtype=np.float32)}, blocks=3)


def test_files_are_timed_under_their_names_against_the_first(job, project):
    files = {"first": project / "e.onnx", "a/b c": project / "e.onnx"}
    (rows,) = time_files(files, [{"x": np.ones((2, 4), dtype=np.float32)}], blocks=3)
    assert [row.alternative for row in rows] == ["first", "a/b c"]
    assert (rows[0].ratio, rows[1].median_ms > 0) == (1, True)


def test_a_file_that_cannot_be_loaded_is_said(project):
    with pytest.raises(ArtifactError, match=r"nowhere\.onnx"):
        time_files({"first": project / "nowhere.onnx"}, [], blocks=3)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_most_memory_is_counted_from_a_reset_on(job, tmp_path):
    """An input of 64 MB is read for the one run, and not for the next."""
    small, large = tmp_path / "small.npz", tmp_path / "large.npz"
    write_feed(small, {"x": np.ones((2, 4), dtype=np.float32)})
    write_feed(large, {"x": np.ones((4_000_000, 4), dtype=np.float32)})
    with Worker(job, tmp_path) as worker:
        worker.wait_ready()
        used = []
        for path in (small, large, small):
            worker.reset_memory()
            worker.seconds(path, 1)
            used.append(worker.memory_mb())
    assert used[1] > used[0] + 60
    assert used[2] < used[1] - 60


@pytest.mark.parametrize("n", range(1, 10))
def test_each_alternative_stands_at_each_place_and_follows_each_other_one_as_often(n):
    orders = balanced_orders(n)
    assert all(sorted(order) == list(range(n)) for order in orders)
    places = Counter(place for order in orders for place in enumerate(order))
    assert set(places.values()) == {len(orders) // n}
    assert len(places) == n * n
    followers = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert len(followers) == n * (n - 1)
    assert len(set(followers.values())) <= 1
