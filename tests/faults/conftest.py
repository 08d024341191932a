import os
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def folder():
    """A folder in memory where there is one: on a disk most of the time would be spent on waiting for fsync."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        os.chmod(name, 0o755)
        yield Path(name)
