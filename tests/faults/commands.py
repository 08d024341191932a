"""Whole commands in forked children: the libraries are loaded once, in the test's own process."""

import functools
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from ensexport.cli import main
from ensexport.errors import EnsexportError
from ensexport.package.verifying import verify_package
from tests.cli.projects import X, make_project
from tests.cli.projects import run as run_here
from tests.faults.packages import contents

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x))))
"""


@dataclass(frozen=True)
class Project:
    """Checkpoints, a model and a packed ensemble.

    Attributes:
        folder: Where they lie.
        out: An empty folder for what is written.
    """

    folder: Path
    out: Path

    def pack(self, output="pkg", *more):
        """Arguments of `pack`."""
        return ("pack", "ckpts", "--model", "model.py:Net", "--input", X, "-o", str(self.out / output), *more)

    def swap(self, output="pkg", *more, member=1, checkpoint="ckpts/m0.pt"):
        """Arguments of `swap` that replace a member of the packed ensemble."""
        return ("swap", str(self.folder / "packed"), "--member", str(member), checkpoint, "--model", "model.py:Net",
                "-o", str(self.out / output), *more)  # fmt: skip

    def prepare(self, *, is_replacing):
        """Empty the output folder, or put a package there to be replaced."""
        shutil.rmtree(self.out)
        self.out.mkdir()
        if is_replacing:
            shutil.copytree(self.folder / "packed", self.out / "pkg")

    @functools.cached_property
    def old(self):
        """The bytes of the package to be replaced."""
        return contents(self.folder / "packed")

    def is_whole(self, output="pkg", *, is_replacing):
        """Whether the target is the old one, byte for byte, or one that `verify` takes; a new one may be absent."""
        target = self.out / output
        if not target.exists():
            return not is_replacing
        return (is_replacing and contents(target) == self.old) or is_verified(target)

    def is_clean(self, *outputs):
        """Whether there is nothing but these outputs, or some of them."""
        return set(os.listdir(self.out)) <= set(outputs or ("pkg",))


def make(folder):
    """Make a project in an empty folder, and load all libraries that its commands need."""
    project = Project(make_project(folder / "project", NET), folder / "out")
    project.out.mkdir()
    os.chdir(project.folder)
    for arguments in (project.pack(), project.swap("swapped")):
        done = run_here(*arguments)
        assert done.exit_code == 0, done.err
        if not (project.folder / "packed").exists():
            shutil.move(project.out / "pkg", project.folder / "packed")
    return project


def is_verified(package):
    """Whether `verify` takes a package."""
    try:
        verify_package(package)
    except EnsexportError as error:
        print(f"verify: {error}")
        return False
    return True


def command(*arguments, said=None):
    """What runs a command in a child and returns its exit code.

    Args:
        arguments: As on the command line.
        said: A file for what it prints; by default that is dropped.
    """

    def work(begin=lambda: None):
        null = os.open(said or os.devnull, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        for descriptor in (1, 2):
            os.dup2(null, descriptor)
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", closefd=False)
        # Before and after the command's own handlers: what a new process does, and one that has ended.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
        sys.argv = ["ensexport", *arguments]
        begin()
        try:
            main()
        except SystemExit as stop:
            return stop.code
        return 0

    return work
