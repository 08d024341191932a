"""Small projects on disk, and ways to run the command line on them."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ensexport.cli import cli

MLP = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Linear(4, width)
        self.last = nn.Linear(width, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))
"""
X = "x:float32[batch,4]"


@dataclass(frozen=True)
class Result:
    """What one run of the command line did."""

    exit_code: int
    out: str
    err: str

    @property
    def answer(self) -> dict[str, Any]:
        """The one JSON object on stdout; fails if there is anything else."""
        assert self.out.endswith("\n")
        value = json.loads(self.out, parse_constant=_refuse_constant)
        assert isinstance(value, dict)
        return value

    @property
    def error(self) -> dict[str, Any]:
        """The `error` object of a failure's answer, which must be complete."""
        answer = self.answer
        assert set(answer) == {"command", "ok", "error", "exit_code"}
        assert answer["ok"] is False
        assert answer["exit_code"] == self.exit_code
        assert {"code", "message", "hint"} <= set(answer["error"])
        return answer["error"]


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def run(*arguments: object) -> Result:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
    return Result(code, out.getvalue(), err.getvalue())


def run_process(*arguments: object, cwd: Path, **options: Any) -> Result:
    """Run `python -m ensexport` in a process of its own."""
    command = [sys.executable, "-m", "ensexport", *(str(argument) for argument in arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300, **options)
    return Result(done.returncode, done.stdout, done.stderr)


def load_script(path: Path | str) -> Any:
    """Load a TorchScript file as its users do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit points to torch.export
        return torch.jit.load(str(path))


def load_factory(source: str, name: str = "Net") -> Any:
    """Execute a model file's text and return its factory."""
    namespace: dict[str, Any] = {"__name__": "project_model"}
    exec(compile(source, "model.py", "exec"), namespace)
    return namespace[name]


def make_members(source: str = MLP, n_members: int = 3, dtype: str = "float32", **arguments: Any) -> list[Any]:
    """Build members that differ in their seed."""
    members = []
    for seed in range(n_members):
        torch.manual_seed(seed)
        members.append(load_factory(source)(**arguments).to(getattr(torch, dtype)))
    return members


def make_project(folder: Path, source: str = MLP, n_members: int = 3, **arguments: Any) -> Path:
    """Write `model.py` and `ckpts/m0.pt ...` into a folder; arguments are as for `make_members`."""
    (folder / "ckpts").mkdir(parents=True)
    (folder / "model.py").write_text(source)
    for index, member in enumerate(make_members(source, n_members, **arguments)):
        torch.save(member.state_dict(), folder / "ckpts" / f"m{index}.pt")
    return folder


def change_state(path: Path, change: Any) -> None:
    """Rewrite one checkpoint."""
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, Python's own caches left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"folder"
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }
