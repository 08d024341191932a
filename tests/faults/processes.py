"""Child processes by fork, which takes milliseconds where a new interpreter takes seconds, and signals at moments."""

import contextlib
import os
import random
import signal
import sys
import time
import traceback
import warnings


def fork(work):
    """Start `work()` in a child that never returns into the test; returns its process id.

    The child's exit code is what `work` returns, or 99 if it raises.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch has threads; the child uses none of them
        child = os.fork()
    if child:
        return child
    code = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        code = work() or 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:  # noqa: BLE001 - the child must never return into the test
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)


def end_of(child):
    """Wait for a child; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(work):
    """Do `work()` in a child and return its exit code."""
    return end_of(fork(work))


class Moments:
    """Random delays over the time that a piece of work takes, half of them in the part that matters most.

    Args:
        whole: Seconds the work takes.
        part: `(begin, end)` of that part, in seconds.
        seed: Of the random numbers.
    """

    def __init__(self, whole, part, seed=0):
        self.whole, self.part = whole, part
        self._random, self._scale = random.Random(seed), 1.0

    def draw(self):
        """One delay in seconds."""
        if self._random.random() < 0.5:
            return self._scale * self._random.uniform(0, self.whole)
        return self._scale * self._random.uniform(*self.part)

    def tell(self, *, is_hit):
        """Say whether the last one came in time: other work on the machine changes how long this one takes."""
        self._scale *= 1.1 if is_hit else 0.85  # about two thirds come in time then


def together(*works):
    """Do all of them at the same time, each in a child; returns their exit codes."""
    reading, writing = os.pipe()

    def start(work):
        os.close(writing)
        os.read(reading, 1)  # until the last writer has gone
        return work()

    children = [fork(lambda work=work: start(work)) for work in works]
    os.close(reading)
    os.close(writing)
    return [end_of(child) for child in children]


def begun(work):
    """For `signal_after`: work that has begun when it is called."""

    def do(begin):
        begin()
        return work()

    return do


def signal_after(work, number, delay, wait=end_of):
    """Start `work` in a child and send it a signal `delay` seconds after it has begun; returns how it ended.

    Args:
        work: Called as `work(begin)`; calls `begin()` when the time is to run.
        number: The signal.
        delay: Seconds.
        wait: Given the child, returns its end.
    """
    reading, writing = os.pipe()
    child = fork(lambda: work(lambda: os.write(writing, b".")))
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    deadline = time.perf_counter() + delay
    while (left := deadline - time.perf_counter()) > 0:
        time.sleep(left if left > 0.001 else 0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)
    return wait(child)


def seconds(work, *, prepare, repeats=5):
    """How long `work` takes in a child, the median; `prepare` is done before each time."""
    taken = []
    for _ in range(repeats):
        prepare()
        reading, writing = os.pipe()

        def timed(writing=writing):
            begin = time.perf_counter()
            work()
            os.write(writing, str(time.perf_counter() - begin).encode())

        assert run(timed) == 0
        os.close(writing)
        taken.append(float(os.read(reading, 100)))
        os.close(reading)
    return sorted(taken)[repeats // 2]
