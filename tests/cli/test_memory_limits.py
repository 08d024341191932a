"""Under `ulimit -v` and `ulimit -d`: exit code 3 or 7 with numbers, one JSON object with `--json`, nothing left behind.

Real limits on real processes. What a process does that meets its limit in the middle of native code differs from run to
run and from machine to machine; what is promised does not.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.projects import MLP, Result, X, make_project, snapshot

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep these limits")
PACK = ("pack", "ckpts", "--model", "model.py:Net", "--input", X, "-o", "e.ts")
SPACE, DATA, ENOUGH = "-v", "-d", 6_000_000 * 1024
COMMANDS = {
    "pack": PACK,
    "validate": ("validate", "e.onnx", "ckpts", "--model", "model.py:Net"),
    "inspect": ("inspect", "ckpts", "--model", "model.py:Net"),
    "inspect-artifact": ("inspect", "e.onnx"),
    "bench": ("bench", "e.onnx", "ckpts", "--model", "model.py:Net"),
}
# After `--model` was imported, memory is at its end: what follows differs in who notices it, and how.
ENDS = {
    "abort": "os.abort()",
    "exit": "os._exit(1)",  # as OpenBLAS and libgomp do
    "segfault": "os.kill(os.getpid(), signal.SIGSEGV)",
}


def limited_command(flag, size, arguments):
    """A shell that sets the limit, in bytes, and becomes the command."""
    return [
        "sh",
        "-c",
        f'ulimit {flag} {size // 1024} && exec "$@"',
        "sh",
        sys.executable,
        "-m",
        "ensexport",
        *arguments,
    ]


def limited(flag, size, *arguments, cwd):
    command = limited_command(flag, size, arguments)
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_limit_that_torch_does_not_fit_into_is_refused_with_both_numbers(arguments, project):
    (project / "e.onnx").touch()
    before = snapshot(project)
    result = limited(SPACE, 300_000_000, *arguments, "--json", cwd=project)
    assert result.exit_code == 3
    assert result.err == ""
    assert result.error["code"] == "E_MEMORY"
    assert result.error["message"].startswith("cannot load torch and ONNX Runtime: ")
    assert " of 300.0 MB are left (address space, ulimit -v)" in result.error["message"]
    assert 0 < result.error["available_bytes"] < 300_000_000 < result.error["needed_bytes"]
    assert snapshot(project) == before


def test_a_limit_on_data_is_refused_too_and_threads_count(project, monkeypatch):
    one = limited(DATA, 100_000_000, *PACK, "--json", cwd=project).error
    assert "(data segment, ulimit -d)" in one["message"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    three = limited(DATA, 100_000_000, *PACK, "--json", cwd=project).error
    assert three["needed_bytes"] == one["needed_bytes"] + 100_000_000
    assert "2 more threads 100.0 MB" in three["message"]
    assert three["hint"].endswith("OMP_NUM_THREADS=1.")
    assert "OMP_NUM_THREADS" not in one["hint"]


def test_what_needs_no_torch_is_answered_under_any_limit(project):
    assert limited(SPACE, 60_000_000, "--version", cwd=project).exit_code == 0
    assert limited(SPACE, 60_000_000, "pack", "nowhere", *PACK[2:], cwd=project).exit_code == 2


@pytest.mark.parametrize(
    "size",
    [700, 860, *(pytest.param(size, marks=pytest.mark.slow) for size in range(600, 900, 15))],
    ids="{} MB".format,
)
def test_wherever_memory_ends_it_is_said_with_numbers_and_nothing_is_left(size, project):
    before = snapshot(project)
    result = limited(SPACE, size * 1_000_000, *PACK[:-1], "e.onnx", "--json", cwd=project)
    if result.exit_code == 0:  # a build of torch that takes less than the one these sizes were measured with
        return
    assert result.exit_code in (3, 7)
    assert result.error["code"] in ("E_MEMORY", "E_OUT_OF_MEMORY")
    assert "ulimit -v" in result.error["message"]
    assert " MB" in result.error["message"]
    assert "Traceback" not in result.err
    assert snapshot(project) == before


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """Makes a project whose model does something, when it is run, under a limit that suffices."""

    def make(deed):
        source = "import os, signal\n" + MLP.replace("(self, x):\n", f"(self, x):\n        {deed}\n")
        return make_project(tmp_path / "project", source=MLP), source

    return make


@pytest.mark.parametrize("deed", ENDS.values(), ids=ENDS)
def test_the_end_of_the_process_in_native_code_is_reported_and_its_files_are_removed(deed, failing):
    project, source = failing(deed)
    (project / "model.py").write_text(source)
    before = snapshot(project)
    result = limited(SPACE, ENOUGH, *PACK, "--json", cwd=project)
    assert result.exit_code == 7
    assert result.error["code"] == "E_OUT_OF_MEMORY"
    assert result.error["limit_bytes"] == ENOUGH
    assert 100_000_000 < result.error["peak_bytes"] < ENOUGH
    assert "of 6.1 GB (address space, ulimit -v)" in result.error["message"]
    assert snapshot(project) == before


def test_memory_that_a_model_asks_for_and_does_not_get_is_said_in_bytes(failing):
    project, source = failing("torch.zeros(5_000_000_000)")
    (project / "model.py").write_text(source)
    before = snapshot(project)
    result = limited(SPACE, ENOUGH, *PACK, cwd=project)
    assert result.exit_code == 7
    assert result.err.startswith(
        "error [E_OUT_OF_MEMORY]: out of memory: 20.0 GB more were asked for; this process holds"
    )
    assert result.err.endswith("\nRaise the limit (ulimit -v), or lift it (ulimit -v unlimited).\n")
    assert snapshot(project) == before


def test_a_limit_that_suffices_changes_nothing(project):
    result = limited(SPACE, ENOUGH, *PACK, "--json", cwd=project)
    assert result.exit_code == 0
    assert result.answer["ok"] is True
    assert (project / "e.ts").is_file()
    assert not list(project.glob(".ensexport-*"))
    again = limited(SPACE, ENOUGH, *PACK, "--json", cwd=project)
    assert (again.exit_code, again.error["code"]) == (7, "E_TARGET_EXISTS")


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"])
def test_signals_reach_the_work_under_a_limit(number, exit_code, failing):
    project, source = failing("open('running', 'w').close(); import time; time.sleep(60)")
    (project / "model.py").write_text(source)
    process = subprocess.Popen(
        limited_command(SPACE, ENOUGH, PACK), cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(1200):
        if (project / "running").exists():
            break
        time.sleep(0.1)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == exit_code
    assert "nothing was written" in err
    assert not list(project.glob(".ensexport-*"))
