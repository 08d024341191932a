"""Every help text starts with an imperative sentence and ends with an example that runs."""

import shlex
import shutil

import pytest

from ensexport.bench.names import default_alternatives
from ensexport.cli import cli
from tests.cli.projects import run

COMMANDS = {
    "root": [],
    "pack": ["pack"],
    "inspect": ["inspect"],
    "validate": ["validate"],
    "bench": ["bench"],
    "verify": ["verify"],
    "extract": ["extract"],
    "swap": ["swap"],
}


def example_of(command):
    """The example as it stands at the end of the help, without the program's name."""
    lines = run(*command, "--help").out.rstrip().splitlines()
    assert lines[-2].strip() == "Example:"
    program, *arguments = shlex.split(lines[-1])
    assert program == "ensexport"
    return arguments


def test_all_commands_are_here():
    assert cli.list_commands(None) == list(COMMANDS)[1:]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_first_sentence_is_short_and_complete(command):
    text = run(*command, "--help").out.split("\n\n")[1]
    assert text.strip()[0].isupper()
    assert text.strip().endswith(".")


def test_the_examples_run(project):
    """One after the other, for each needs what the one before has made."""
    assert run(*example_of(["pack"])).exit_code == 0
    assert run(*example_of([]), "--force").exit_code == 0
    assert run(*example_of(["validate"])).exit_code == 0
    assert run(*example_of(["pack"]), "-o", "ensemble", "--force").exit_code == 0
    assert run(*example_of(["verify"])).exit_code == 0
    assert run(*example_of(["extract"])).exit_code == 0
    shutil.copy(project / "ckpts" / "m2.pt", project / "new.pt")
    assert run(*example_of(["swap"])).exit_code == 0
    timed = run(*example_of(["bench"]), "--blocks", 3)
    assert (timed.exit_code, timed.err) == (0, "")
    for batch in (1, 8, 64):
        assert f"\nbatch {batch}, N = 3 " in timed.out
    for row in ("packed", "packed-again", *default_alternatives("ensemble.onnx", "cpu")):
        assert timed.out.count(f"\n  {row}  ") == 3 or row == "torch-compile"  # where there is no compiler
    assert timed.out.count("left out") <= 1
