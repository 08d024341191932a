"""`--help` and usage errors answer at once: nothing heavy is imported for them."""

import json
import resource
import subprocess
import sys

import pytest

from tests.cli.projects import X, make_project

HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "numpy", "rich", "safetensors")
SCRIPT = f"""
import json, sys
from ensexport.cli import cli
try:
    cli.main(sys.argv[1:])
finally:
    print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)
"""
CASES = {
    "help": (["--help"], 0, "Turn the trained checkpoints"),
    "version": (["--version"], 0, "version"),
    "nothing": ([], 2, "Usage"),
    "pack-help": (["pack", "--help"], 0, "--per-member"),
    "validate-help": (["validate", "--help"], 0, "--rtol"),
    "bench-help": (["bench", "-h"], 0, "--min-speedup"),
    "verify-help": (["verify", "--help"], 0, "PACKAGE"),
    "verify-no-provider": (["verify", "ensemble", "--provider", "rocm"], 2, "'rocm'"),
    "unknown-command": (["pakc"], 2, "No such command"),
    "unknown-option": (["pack", "ckpts", "--frob"], 2, "No such option"),
    "no-output": (["pack", "ckpts"], 2, "'-o'"),
    "unknown-suffix": (["pack", "ckpts", "--model", "model.py:Net", "--input", X, "-o", "e.tflite"], 2, "'.tflite'"),
    "bad-input": (["pack", "ckpts", "--model", "model.py:Net", "--input", "x[4]", "-o", "e.onnx"], 2, "NAME:DTYPE"),
    "no-input": (["pack", "ckpts", "--model", "model.py:Net", "-o", "e.onnx"], 2, "--input"),
    "unknown-emit": (["pack", "ckpts", "--model", "m.py:N", "--input", X, "--emit", "avg", "-o", "e.ts"], 2, "'avg'"),
    "no-model": (["pack", "ckpts", "--input", X, "-o", "e.onnx"], 2, "--model"),
    "bad-model-args": (["pack", "ckpts", "--model", "m.py:N", "--model-args", "{", "-o", "e.onnx"], 2, "'{'"),
    "validate-no-model": (["validate", "e.onnx", "ckpts"], 2, "--model"),
    "bench-no-model": (["bench", "e.onnx", "ckpts"], 2, "--model"),
    "bench-bad-batch": (["bench", "e.onnx", "ckpts", "--model", "m.py:N", "--batch", "1,x"], 2, "'1,x'"),
    "bench-bad-plot": (["bench", "e.onnx", "ckpts", "--model", "m.py:N", "--plot", "a.pdf"], 2, "'a.pdf'"),
    "missing-folder": (["pack", "nowhere", "--model", "m.py:N", "--input", X, "-o", "e.ts"], 2, "'nowhere'"),
    "empty-folder": (["pack", "empty", "--model", "m.py:N", "--input", X, "-o", "e.ts"], 3, "empty"),
    "target-exists": (["pack", "ckpts", "--model", "m.py:N", "--input", X, "-o", "old.onnx"], 7, "--force"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_project(tmp_path_factory.mktemp("startup") / "project")
    (folder / "empty").mkdir()
    (folder / "old.onnx").write_text("old")
    return folder


@pytest.mark.parametrize(("arguments", "exit_code", "text"), CASES.values(), ids=CASES)
def test_an_early_answer_loads_nothing_heavy_and_is_quick(arguments, exit_code, text, folder):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], cwd=folder, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    *error_lines, loaded = done.stderr.splitlines()
    assert json.loads(loaded) == []
    assert done.returncode == exit_code
    assert text in done.stdout + "\n".join(error_lines)
    # Processor time, for the clock also counts what else the machine does.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
