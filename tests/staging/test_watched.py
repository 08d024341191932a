"""A model repository that a server reads: what is staged for it lies beside it."""

import json
import os
from pathlib import Path

import pytest

from ensexport.errors import OutputError, TargetExistsError
from ensexport.staging import Staging

MANIFEST = json.dumps({"tool": {"name": "ensexport"}})


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repo"
    (folder / "old").mkdir(parents=True)
    (folder / "old" / "manifest.json").write_text(MANIFEST)
    return folder


def stage(staging, target, text):
    (staging.path(target) / "manifest.json").write_text(MANIFEST + text)


def test_nothing_is_staged_in_a_folder_that_a_server_reads(repository):
    target = repository / "new"
    with Staging([], folders=[target], force=False, watched=[repository]) as staging:
        stage(staging, target, "\n")
        assert os.listdir(repository) == ["old"]
        assert len(os.listdir(repository.parent)) == 2
        staging.commit()
    assert sorted(os.listdir(repository)) == ["new", "old"]
    assert os.listdir(repository.parent) == ["repo"]
    assert (target / "manifest.json").read_text() == MANIFEST + "\n"


def test_an_old_model_is_replaced_and_no_other_touched(repository):
    target = repository / "old"
    with pytest.raises(TargetExistsError, match="it exists"):
        Staging([], folders=[target], force=False, watched=[repository])
    with Staging([], folders=[target], force=True, watched=[repository]) as staging:
        stage(staging, target, "\n")
        staging.commit()
    assert (target / "manifest.json").read_text() == MANIFEST + "\n"
    assert os.listdir(repository.parent) == ["repo"]


def test_a_relative_repository(repository, monkeypatch):
    monkeypatch.chdir(repository)
    target = Path("new")
    with Staging([], folders=[target], force=False, watched=[Path()]) as staging:
        stage(staging, target, "")
        assert os.listdir(repository) == ["old"]
        staging.commit()
    assert sorted(os.listdir(repository)) == ["new", "old"]


def test_two_models_of_two_repositories_in_one_run(repository):
    other = repository.parent / "other"
    other.mkdir()
    targets = [repository / "a", repository / "b", other / "c"]
    with Staging([], folders=targets, force=False, watched=[repository, other]) as staging:
        for number, target in enumerate(targets):
            stage(staging, target, "\n" * number)
        staging.commit()
    assert [(target / "manifest.json").read_text() for target in targets] == [MANIFEST + "\n" * n for n in range(3)]


def test_a_failure_puts_back_what_was_there(repository, monkeypatch):
    """The second of two moves fails: the first is undone, across folders."""
    targets = [repository / "old", repository / "zzz"]
    with Staging([], folders=targets, force=True, watched=[repository]) as staging:
        for target in targets:
            stage(staging, target, "\n")
        (repository / "zzz").write_text("a file that appeared")
        with pytest.raises(OutputError, match="zzz"):
            staging.commit()
    assert (repository / "old" / "manifest.json").read_text() == MANIFEST
    assert sorted(os.listdir(repository)) == ["old", "zzz"]
    assert os.listdir(repository.parent) == ["repo"]


def test_what_a_killed_run_left_beside_a_repository_is_cleared_by_the_next(repository):
    target = repository / "old"
    child = os.fork()
    if not child:
        with Staging([], folders=[target], force=True, watched=[repository]) as staging:
            stage(staging, target, "\n")
            os._exit(9)
    os.waitpid(child, 0)
    assert len(os.listdir(repository.parent)) == 2
    with Staging([], folders=[target], force=True, watched=[repository]) as staging:
        assert len(os.listdir(repository.parent)) == 2
        stage(staging, target, "\n\n")
        staging.commit()
    assert os.listdir(repository.parent) == ["repo"]
    assert (target / "manifest.json").read_text() == MANIFEST + "\n\n"
