"""Interleaved blocks, one process an alternative; medians of per-block ratios with a bootstrap interval.

Only one of the processes runs at a time: the others are stopped by signal. Waiting would not do, for the threads of
ONNX Runtime and OpenMP spin on after a call, and that takes the cores from whoever is timed next: 50 ms for one
session, 200 ms for ten (measured on two cores with ONNX Runtime 1.31.1).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ensexport import errors
from ensexport.compare import Array
from ensexport.errors import EnsexportError
from ensexport.timing.exchange import read_feed, write_feed
from ensexport.timing.graphs import maker_of

BLOCK_S = 0.02
FEWEST_BLOCKS = 7  # a median of fewer says little
_WARM_SHARE = 0.1  # of a block: brings the weights back into the caches and the threads out of their sleep
_WARM_UP_S = 0.01  # at most, for each block that will be measured
_CAN_STOP = hasattr(signal, "SIGSTOP")
_SPIN_S = 0.25  # where processes cannot be stopped: how long idle threads may spin on


class BenchError(EnsexportError):
    """The artifact or an alternative fails when it is run."""

    exit_code = 6
    code = "E_BENCH"


@dataclass(frozen=True)
class Timing:
    """One alternative at one batch size.

    Attributes:
        alternative: Its name.
        median_ms: Median time of one call over all blocks.
        ratio: Median over the blocks of (its time / the packed artifact's time in the same round).
        ratio_low: Lower end of the 95 % bootstrap interval of `ratio`.
        ratio_high: Upper end.
        calls: How many calls were timed.
        memory_mb: Most resident memory of its process meanwhile, less what Python alone takes; None where the system
            does not tell.
        load_s: Seconds to create its sessions or modules, imports not counted.
    """

    alternative: str
    median_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    calls: int = 0
    memory_mb: float | None = None
    load_s: float | None = None


class Worker:
    """A process that holds one alternative. It is stopped except while it answers.

    Args:
        job: What to run: `maker` is `module:function`, which turns the job into a function of the inputs; `name` is
            what rows and messages call it; the rest is the maker's.
        folder: Where its log and its outputs are kept.

    Attributes:
        name: As in the job.
        load_s: Seconds that loading took, once it is ready.
        program: What Python runs; a sample may have one of its own, with more alternatives.
    """

    # -P: the current directory must not come before installed packages.
    program: tuple[str, ...] = ("-P", "-m", "ensexport.timing.worker")

    def __init__(self, job: Mapping[str, Any], folder: Path) -> None:
        self.name = str(job["name"])
        self.load_s: float | None = None
        own = Path(tempfile.mkdtemp(dir=folder))  # a name may hold what a file's may not
        self._out = own / "outputs.npz"
        self._log = (own / "log").open("w+", errors="replace")
        command = [sys.executable, *self.program]
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
            try:
                stream.close()
            except BrokenPipeError:
                continue  # what was left to send to a process that is gone

    def wait_ready(self) -> None:
        """Wait until the alternative is loaded."""
        self.load_s = self._receive()["load_s"]
        self._stop()

    def outputs(self, feed: Path) -> dict[str, Array]:
        """Run once and return the outputs."""
        self._ask({"run": str(feed), "to": str(self._out)})
        return read_feed(self._out)

    def seconds(self, feed: Path, repeats: int) -> float:
        """Run `repeats` times, after some runs to warm up, and return the seconds that took."""
        warm = max(1, round(_WARM_SHARE * repeats))
        return float(self._ask({"time": str(feed), "warm": warm, "repeats": repeats})["seconds"])

    def reset_memory(self) -> None:
        """Count the most memory used from now on."""
        self._ask({"reset": True})

    def memory_mb(self) -> float | None:
        """Return the most memory used since, less what Python alone takes."""
        found: float | None = self._ask({"memory": True})["memory_mb"]
        return found

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._signal("SIGCONT")
        self._send(request)
        answer = self._receive()
        self._stop()
        return answer

    def _stop(self) -> None:
        self._signal("SIGSTOP")
        if not _CAN_STOP:
            time.sleep(_SPIN_S)

    def _signal(self, name: str) -> None:
        if _CAN_STOP and self._process.poll() is None:
            os.kill(self._process.pid, getattr(signal, name))

    def _send(self, value: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _rebuilt(self.name, answer)
        return answer

    def _ended(self) -> BenchError:
        self._log.seek(0)
        tail = " ".join(self._log.read().strip().splitlines()[-1:])
        code = self._process.wait()
        return BenchError(f"the process of '{self.name}' ended with {code}" + (f": {tail}" if tail else "."))


def _rebuilt(name: str, answer: Mapping[str, Any]) -> EnsexportError:
    """The error that the process met, as the class it was there."""
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    known = {value.code: value for value in classes if issubclass(value, EnsexportError)}
    if answer.get("code") in known:
        return known[answer["code"]](answer["error"], hint=answer["hint"])
    return BenchError(f"'{name}' fails when it is run: {answer['error']}")


def measure(
    workers: Sequence[Worker], feed: Mapping[str, Array], *, blocks: int, budget_s: float | None = None
) -> list[Timing]:
    """Time all workers on one feed in interleaved blocks; the first worker is what ratios refer to.

    Each block is about 20 ms of one alternative, one call where that takes longer. Over the rounds each alternative
    follows each other one as often, for it finds the caches as that one left them.

    Args:
        workers: What to time.
        feed: The inputs.
        blocks: Rounds.
        budget_s: Fewer rounds, but at least seven, where the blocks of the slowest worker would take longer together.

    Raises:
        BenchError: A worker fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feed.npz"
        write_feed(path, feed)
        for worker in workers:
            worker.reset_memory()
        found = {worker.name: _calibrated(worker, path, limit_s=blocks * _WARM_UP_S) for worker in workers}
        repeats = {name: max(1, int(np.ceil(BLOCK_S / call_s))) for name, call_s in found.items()}
        if budget_s is not None:
            slowest_s = max(repeats[name] * call_s for name, call_s in found.items())
            blocks = min(blocks, max(FEWEST_BLOCKS, int(budget_s / slowest_s)))
        times: dict[str, list[float]] = {worker.name: [] for worker in workers}
        orders = balanced_orders(len(workers))
        for number in range(blocks):
            for index in orders[number % len(orders)]:
                worker = workers[index]
                times[worker.name].append(worker.seconds(path, repeats[worker.name]) / repeats[worker.name])
    packed = np.array(times[workers[0].name])
    return [
        replace(
            summarise(worker.name, np.array(times[worker.name]), packed),
            calls=blocks * repeats[worker.name],
            memory_mb=worker.memory_mb(),
            load_s=worker.load_s,
        )
        for worker in workers
    ]


def balanced_orders(n: int) -> list[list[int]]:
    """Orders of n treatments in which each stands at each place, and behind each other one, equally often.

    Returns:
        n orders if n is even, 2 n if it is odd and more than 1.

    Source: E. J. Williams, "Experimental designs balanced for the estimation of residual effects of treatments",
    Australian Journal of Scientific Research A 2 (1949) 149-168.
    """
    zigzag = [place // 2 if place % 2 == 0 else n - 1 - place // 2 for place in range(n)]
    orders = [[(treatment + shift) % n for treatment in zigzag] for shift in range(n)]
    return orders + [order[::-1] for order in orders] if n % 2 and n > 1 else orders


def time_files(
    files: Mapping[str, Path],
    feeds: Sequence[Mapping[str, Array]],
    *,
    provider: str = "cpu",
    blocks: int = 30,
    outputs: Sequence[str] = (),
) -> list[list[Timing]]:
    """Time files that take the same inputs; each has a process of its own.

    Args:
        files: Name -> `.onnx`, `.ts` or `.pt2`. The first is what ratios refer to. Outputs are not compared.
        feeds: One or several sets of inputs by name.
        provider: `cpu`, `cuda` or `tensorrt`.
        blocks: Rounds of interleaved blocks.
        outputs: Names of the outputs, for files that do not know them.

    Returns:
        For each set of inputs one row a file, in the order given.

    Raises:
        ProviderError: The provider is not there.
        ArtifactError: A file cannot be loaded.
        BenchError: A file fails when it is run.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ensexport-bench-")))
        jobs = [
            {
                "maker": maker_of(Path(path)),
                "name": name,
                "path": str(Path(path).resolve()),
                "provider": provider,
                "outputs": list(outputs),
            }
            for name, path in files.items()
        ]
        workers = [stack.enter_context(Worker(job, folder)) for job in jobs]
        for worker in workers:
            worker.wait_ready()
        return [measure(workers, feed, blocks=blocks) for feed in feeds]


def _calibrated(worker: Worker, feed: Path, *, limit_s: float) -> float:
    """Warm up until three medians agree within 2 % (or time is up), and return the seconds of one call."""
    begin = time.perf_counter()
    first = worker.seconds(feed, 1)
    if time.perf_counter() - begin > limit_s:
        return first
    repeats = 1
    medians: list[float] = []
    while not medians or time.perf_counter() - begin < limit_s:
        medians.append(float(np.median([worker.seconds(feed, repeats) for _ in range(3)])) / repeats)
        repeats = max(1, int(np.ceil(BLOCK_S / 4 / medians[-1])))
        last = medians[-3:]
        if len(last) == 3 and max(last) <= 1.02 * min(last):
            break
    return medians[-1]


def summarise(alternative: str, seconds: npt.NDArray[np.float64], packed: npt.NDArray[np.float64]) -> Timing:
    """Turn the seconds per call of each block into one row; both arrays have one entry a round."""
    ratios = seconds / packed
    draws = np.random.default_rng(0).choice(ratios, size=(1000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return Timing(alternative, float(np.median(seconds)) * 1e3, float(np.median(ratios)), float(low), float(high))
