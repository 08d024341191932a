"""SIGINT and SIGTERM: the documented exit code, nothing left behind, no process left over."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ensexport.cli.interrupts import Interrupts, Terminated
from tests.cli.projects import MLP, X, make_project, run, snapshot

SLOW = MLP.replace("        return self", "        import time; time.sleep(0.02)\n        return self")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


@pytest.fixture(autouse=True)
def sigint_as_in_a_terminal():
    """A shell that starts the tests in the background has them ignore SIGINT, and so the commands they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(*arguments, cwd):
    command = [sys.executable, "-m", "ensexport", "-v", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def interrupt(process, number, stage):
    """Send a signal when a stage begins; returns exit code, stdout and what was said after that."""
    for line in process.stderr:
        if stage in line:
            os.kill(process.pid, number)
            break
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def is_gone(group):
    """Wait until a process group has no member left; a killed process takes a moment to be reaped."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


MOMENTS = {
    "int-while-exporting": (signal.SIGINT, "exporting one member", 130, "interrupted"),
    "term-while-comparing": (signal.SIGTERM, "running the members", 143, "terminated"),
}


@pytest.mark.parametrize(("number", "stage", "exit_code", "word"), MOMENTS.values(), ids=MOMENTS)
def test_a_signal_while_packing_leaves_everything_as_it_was(tmp_path, number, stage, exit_code, word):
    folder = make_project(tmp_path / "project", SLOW)
    (folder / "e.ts").write_bytes(b"old")
    before = snapshot(folder)
    process = start("pack", "ckpts", "--model", "model.py:Net", "--input", X, "-o", "e.ts", "-o", "f.ts", "--force",
                    cwd=folder)  # fmt: skip
    code, out, err = interrupt(process, number, stage)
    assert (code, out) == (exit_code, "")
    assert f"{word}: nothing was written" in err
    assert "Traceback" not in err
    assert snapshot(folder) == before


def test_a_signal_while_alternatives_start_ends_all_processes(project):
    assert run("pack", "ckpts", "--model", "model.py:Net", "--input", X, "-o", "e.onnx").exit_code == 0
    process = start("bench", "e.onnx", "ckpts", "--model", "model.py:Net", "--blocks", "1000", "--json", cwd=project)
    code, out, _ = interrupt(process, signal.SIGTERM, "starting one process")
    assert code == 143
    assert '"E_TERMINATED"' in out
    assert is_gone(process.pid)


def test_a_signal_that_python_dropped_is_raised_at_the_next_stage():
    interrupts = Interrupts()
    with interrupts.caught():
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Terminated):
            interrupts.check()


def test_a_second_signal_does_not_interrupt_the_cleaning_up():
    interrupts = Interrupts()
    with interrupts.caught():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_while_files_are_put_in_place_is_ignored():
    interrupts = Interrupts()
    with interrupts.caught():
        interrupts.hold()
        signal.raise_signal(signal.SIGTERM)
        interrupts.check()


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts().caught():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
