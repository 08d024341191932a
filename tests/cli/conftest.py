import pytest

from tests.cli.projects import make_project


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with `model.py` and three checkpoints in `ckpts/`; the current directory."""
    monkeypatch.chdir(make_project(tmp_path / "project"))
    return tmp_path / "project"


@pytest.fixture(autouse=True)
def single_threaded_processes(monkeypatch):
    """Torch's threads spin; on a machine that runs other things too, tiny models would take a hundred times as long."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
