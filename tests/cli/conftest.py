import sys

import pytest

from tests.cli.projects import make_project


@pytest.fixture(autouse=True)
def restored_imports(monkeypatch):
    """Undo what importing a project's model file leaves in sys.path and sys.modules."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("_ensexport_model_"):
            del sys.modules[name]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with `model.py` and three checkpoints in `ckpts/`; the current directory."""
    monkeypatch.chdir(make_project(tmp_path / "project"))
    return tmp_path / "project"


@pytest.fixture(autouse=True)
def single_threaded_processes(monkeypatch):
    """Torch's threads spin; on a machine that runs other things too, tiny models would take a hundred times as long."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
