"""Interleaved blocks, one process an alternative; medians of per-block ratios with a bootstrap interval."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ensexport.bench.exchange import read_feed, write_feed
from ensexport.compare import Array
from ensexport.errors import EnsexportError

_MIN_BLOCK_S = 0.02
_PAUSE_S = 0.01  # lets the last alternative's threads stop spinning


class BenchError(EnsexportError):
    """An alternative could not be run."""

    exit_code = 6
    code = "E_BENCH"


@dataclass(frozen=True)
class Timing:
    """One alternative at one batch size.

    Attributes:
        alternative: Its name.
        median_ms: Median time of one call over all blocks.
        ratio: Median over the blocks of (its time / the packed artifact's time in the same block).
        ratio_low: Lower end of the 95 % bootstrap interval of `ratio`.
        ratio_high: Upper end.
    """

    alternative: str
    median_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


class Worker:
    """A running alternative."""

    def __init__(self, job: Mapping[str, Any], folder: Path) -> None:
        self.kind = str(job["kind"])
        self._folder = folder
        self._log = (folder / f"{self.kind.replace(' ', '_')}.log").open("w+")
        # -P: the current directory must not come before installed packages.
        command = [sys.executable, "-P", "-m", "ensexport.bench.worker"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self._send(job)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            assert stream is not None
            stream.close()

    def wait_ready(self) -> None:
        """Wait until the alternative is loaded."""
        self._receive()

    def outputs(self, feed: Path) -> dict[str, Array]:
        """Run once and return the outputs."""
        target = self._folder / f"{self.kind.replace(' ', '_')}_out.npz"
        self._send({"run": str(feed), "to": str(target)})
        self._receive()
        return read_feed(target)

    def seconds(self, feed: Path, repeats: int) -> float:
        """Run `repeats` times and return the seconds all of it took."""
        self._send({"time": str(feed), "repeats": repeats})
        return float(self._receive()["seconds"])

    def _send(self, value: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed("it ended") from None

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failed("it ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._failed(answer["error"])
        return answer

    def _failed(self, reason: str) -> BenchError:
        self._log.seek(0)
        tail = self._log.read().strip().splitlines()[-1:] if reason == "it ended" else []
        return BenchError(f"the alternative '{self.kind}' cannot be run: {' '.join([reason, *tail])}")


def measure(workers: Sequence[Worker], feed: Mapping[str, Array], *, blocks: int) -> list[Timing]:
    """Time all workers on one feed in interleaved blocks; the first worker is what ratios refer to.

    Each block is at least 20 ms of one alternative; the order within a round changes from round to round.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feed.npz"
        write_feed(path, feed)
        repeats = {worker.kind: _calibrated(worker, path) for worker in workers}
        times: dict[str, list[float]] = {worker.kind: [] for worker in workers}
        order = np.random.default_rng(0)
        for _ in range(blocks):
            for index in order.permutation(len(workers)):
                worker = workers[int(index)]
                time.sleep(_PAUSE_S)
                worker.seconds(path, 1)  # wakes the threads that slept through the others' blocks
                times[worker.kind].append(worker.seconds(path, repeats[worker.kind]) / repeats[worker.kind])
    own = np.array(times[workers[0].kind])
    return [_timing(worker.kind, np.array(times[worker.kind]), own) for worker in workers]


def _calibrated(worker: Worker, feed: Path) -> int:
    """Warm up until two medians agree within 2 % (at most 12 rounds), and return the calls that fill a block."""
    repeats, last = 1, float("inf")
    for _ in range(12):
        seconds = float(np.median([worker.seconds(feed, repeats) for _ in range(3)])) / repeats
        repeats = max(1, int(np.ceil(_MIN_BLOCK_S / seconds)))
        if abs(seconds - last) <= 0.02 * seconds:
            break
        last = seconds
    return repeats


def _timing(name: str, own: np.ndarray[Any, Any], packed: np.ndarray[Any, Any]) -> Timing:
    ratios = own / packed
    draws = np.random.default_rng(0).choice(ratios, size=(1000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return Timing(name, float(np.median(own)) * 1e3, float(np.median(ratios)), float(low), float(high))
