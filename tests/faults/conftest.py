import os
import tempfile
from pathlib import Path

import pytest


def _in_memory():
    # On a disk most of the time would be spent on waiting for fsync.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="ensexport-faults-", dir=memory) as name:
        os.chmod(name, 0o755)
        yield Path(name)


folder = pytest.fixture(_in_memory, name="folder")
module_folder = pytest.fixture(_in_memory, name="module_folder", scope="module")
