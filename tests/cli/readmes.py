"""README files as tests: their console blocks are run, and what they show is compared with what comes out."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cli.projects import run

WRITTEN = {"ckpts", "pkg", "store"}  # folders that samples write
SHORTER = {"bench": ["--blocks", "3", "--batch", "2"]}


@dataclass(frozen=True)
class Command:
    """One command of a console block and the output shown below it, if any."""

    line: str
    shown: str


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[Command]:
    """Split a console block at its `$` lines."""
    found = []
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        line, _, shown = part.partition("\n")
        found.append(Command(line, shown))
    return found


def check_block(block: str, shorter: Mapping[str, Sequence[str]] = SHORTER) -> None:
    """Run the commands of a block in the current directory; each must succeed and print what is shown.

    Args:
        block: The text of a console block.
        shorter: Program or command -> options that make it quicker; its output is then not compared.
    """
    for command in commands(block):
        program, *arguments = shlex.split(command.line)
        if program == "cd":
            os.chdir(arguments[0])
            continue
        key = arguments[0] if program in ("ensexport", "python") else program
        more = list(shorter.get(key, ()))
        out = RUNNERS[program]([*arguments, *more])
        if not more and command.shown:
            assert matches(command.shown, out), out


def _run_ensexport(arguments: list[str]) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.err
    return result.out


def _run_python(arguments: list[str]) -> str:
    return _run_process([sys.executable, *arguments])


def _run_process(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


_ANY_LINES = "(?:.*\n)*"
RUNNERS: dict[str, Callable[[list[str]], str]] = {
    "ensexport": _run_ensexport,
    "python": _run_python,
    "ls": lambda arguments: _run_process(["ls", *arguments]),
    "model_signing": lambda arguments: _run_process([str(Path(sys.executable).with_name("model_signing")), *arguments]),
    "sh": lambda arguments: _run_process(["sh", *arguments]),
}


def matches(shown: str, text: str) -> bool:
    """True if a text is what is shown, numbers and digests aside.

    A line of `...` stands for any lines, `...` within a line for any text.
    """
    lines = _masked(shown).splitlines()
    pattern = "".join(_ANY_LINES if line == "..." else _in_line(line) + "\n" for line in lines)
    return re.fullmatch(pattern, _masked(text)) is not None


def _in_line(line: str) -> str:
    return ".*".join(re.escape(part) for part in line.split("..."))


def _masked(text: str) -> str:
    """Digests and numbers differ from machine to machine; everything else must not."""
    text = re.sub(r"\b[0-9a-f]{12,64}\b", "HASH", text)
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "0", text)


def copy_samples(root: Path, target: Path) -> None:
    """Copy what belongs to the samples, not what they have written."""
    for path in sorted((root / "samples").rglob("*")):
        if path.suffix in (".py", ".toml", ".sh", ".md") and not WRITTEN & set(path.parts):
            copy = target / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
