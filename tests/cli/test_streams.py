"""stdout is the answer and nothing else; stderr is for people; a stream that is gone is no reason to crash."""

import os
import re
import subprocess
import sys

import pytest

from ensexport.cli.streams import write_json
from tests.cli.projects import MLP, X, make_project, run, run_process

LOUD = (
    """
import atexit, ctypes, os, sys, warnings
print("at import")
warnings.warn("a warning")
sys.__stdout__.write("to the real stdout, unflushed")
ctypes.CDLL(None).printf(b"from C, unflushed")
atexit.register(print, "at exit")
"""
    + MLP.replace("    def forward(self, x):\n", '    def forward(self, x):\n        print("in forward")\n')
    + """
def loud():
    print("in the factory")
    os.write(1, b"to descriptor 1")
    os.system("echo from a child process")
    return Net()
"""
)
PACK = ("pack", "ckpts", "--model", "model.py:loud", "--input", X, "-o", "e.ts", "--force")
SHELL = f'"{sys.executable}" -m ensexport'


@pytest.fixture(scope="module")
def loud(tmp_path_factory):
    """A project whose model prints in every way there is."""
    folder = make_project(tmp_path_factory.mktemp("streams") / "project")
    (folder / "model.py").write_text(LOUD)
    return folder


def test_a_model_that_prints_does_not_spoil_the_answer(loud):
    result = run_process(*PACK, "--json", cwd=loud)
    assert result.exit_code == 0
    assert result.answer["ok"] is True
    for text in ("at import", "the real stdout", "from C", "in the factory", "in forward", "descriptor 1", "child"):
        assert text in result.err
    assert "at exit" in result.err
    assert "a warning" in result.err


def test_a_failure_is_one_object_too_and_quiet_silences_warnings(loud):
    result = run_process("-q", *PACK, "--atol", "0", "--json", cwd=loud)
    assert result.exit_code == 5
    assert result.error["code"] == "E_MISMATCH"
    assert "a warning" not in result.err


def test_quiet_does_not_silence_errors(project):
    assert "nowhere" in run("-q", "pack", "nowhere", *PACK[2:]).err


def test_a_bug_of_ours_is_one_object_and_exit_1(project, monkeypatch):
    monkeypatch.setattr("ensexport.cli.settings.Settings.packing", lambda self: 1 / 0)
    result = run(*PACK, "--json")
    assert result.exit_code == 1
    assert result.error["code"] == "E_INTERNAL"
    assert "--debug" in result.error["hint"]
    assert result.err == ""


def test_the_traceback_shows_with_debug_only(project):
    arguments = ("pack", "ckpts", "--model", "nowhere.py:Net", "--input", X, "-o", "e.ts")
    assert "Traceback" not in run(*arguments).err
    shown = run("--debug", *arguments)
    assert shown.exit_code == 4
    assert "Traceback" in shown.err
    assert shown.err.splitlines()[-2].startswith("error [E_MODEL]: ")


def test_verbose_says_the_stages_and_quiet_and_plain_do_not(project):
    arguments = ("pack", "ckpts", "--model", "model.py:Net", "--input", X, "--force", "-o", "e.ts")
    lines = [line.partition(" s  ")[2] for line in run("-v", *arguments).err.splitlines()]
    stages = [line for line in lines if not re.search(r": [\d.]+ k?B( in |$)", line)]  # the ends of those in bytes
    assert stages == [
        "loading torch",
        "reading checkpoints",
        "",  # the estimate, which has no time before it
        "exporting one member",
        "batching",
        "writing the weights",
        "writing TorchScript",
        "comparing with the loop",
        "running the members one by one",
        "computing checksums",
        "putting the files in place",
    ]
    assert run(*arguments).err == ""
    assert run("-q", "-v", *arguments).err == ""


@pytest.mark.skipif(os.name != "posix", reason="shell pipes")
@pytest.mark.parametrize("arguments", ["--help", "pack --help", "pack --json", "validate e.ts ckpts --json"])
@pytest.mark.parametrize("tail", ["| head -c 0", "2>&1 | head -c 0", ">&-", ">&- 2>&-", "2>&-", "</dev/null <&-"])
def test_a_stream_that_is_gone_is_no_crash(project, arguments, tail):
    done = subprocess.run(f"{SHELL} {arguments} {tail}", shell=True, cwd=project, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "internal error" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_an_answer_that_cannot_be_written_is_an_output_failure(project):
    done = subprocess.run(f"{SHELL} --help > /dev/full", shell=True, cwd=project, capture_output=True, text=True)
    assert done.returncode == 7
    assert "No space left" in done.stderr


def test_odd_surroundings_do_no_harm(project):
    """A torch.py in the current folder is not imported; a name that the encoding has not is written escaped."""
    (project / "torch.py").write_text("raise RuntimeError('the wrong torch')")
    (project / "ckpts").rename(project / "ckpts😀")
    result = run_process("pack", "ckpts😀", "--model", "model.py:Net", "--input", X, "-o", "e.ts", "--dry-run",
                         cwd=project, env={**os.environ, "PYTHONIOENCODING": "latin-1"})  # fmt: skip
    assert (result.exit_code, result.err) == (0, "")
    assert r"ckpts\U0001f600/m0.pt" in result.out


def test_numbers_that_json_has_not_are_written_as_text(capsys):
    write_json({"a": [float("nan"), 1.5], "b": {"c": -float("inf")}, "d": (1,)})
    assert capsys.readouterr().out == '{"a": ["NaN", 1.5], "b": {"c": "-Infinity"}, "d": [1]}\n'
