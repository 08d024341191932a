"""Small file systems to fill up."""

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest


def can_mount():
    return hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("mount") is not None


@contextmanager
def small_disk(folder, size):
    """A file system of so many bytes at `folder`."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "ensexport-test", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip("needs root to mount a tmpfs")  # root of a container may not
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
