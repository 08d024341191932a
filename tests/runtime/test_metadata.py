import json

import pytest

from ensexport.errors import ArtifactError, UsageError
from ensexport.runtime import read_metadata

from .files import MAKERS, METADATA, damage

SUFFIXES = list(MAKERS)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_was_written_is_read(tmp_path, suffix):
    path = MAKERS[suffix](tmp_path / f"a{suffix}")
    assert read_metadata(path) == METADATA


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_and_a_folder(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(ArtifactError, match=f"cannot read '{path}': there is no such file"):
        read_metadata(path)
    path.mkdir()
    with pytest.raises(ArtifactError, match=f"cannot read '{path}': there is no such file"):
        read_metadata(path)


def test_an_unknown_suffix(tmp_path):
    (tmp_path / "a.pt").write_text("")
    with pytest.raises(UsageError, match=r"cannot tell the format of '.*a\.pt'"):
        read_metadata(tmp_path / "a.pt")


@pytest.mark.parametrize("how", ["empty", "half", "random", "html"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file(tmp_path, suffix, how):
    path = damage(MAKERS[suffix](tmp_path / f"a{suffix}"), how)
    with pytest.raises(ArtifactError, match=f"cannot (read|use) '{path}'") as caught:
        read_metadata(path)
    assert caught.value.exit_code == 3
    assert "Give a file that ensexport packed" in caught.value.hint


@pytest.mark.parametrize("suffix", [".ts", ".pt2"])
def test_an_archive_of_something_else(tmp_path, suffix):
    path = damage(MAKERS[suffix](tmp_path / f"a{suffix}"), "other zip")
    with pytest.raises(ArtifactError, match="it carries no ensexport metadata"):
        read_metadata(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_another_tool(tmp_path, suffix):
    path = MAKERS[suffix](tmp_path / f"a{suffix}", metadata=None)
    with pytest.raises(ArtifactError, match=f"cannot use '{path}': it carries no ensexport metadata"):
        read_metadata(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_metadata_that_is_no_json(tmp_path, suffix):
    path = MAKERS[suffix](tmp_path / f"a{suffix}", metadata="{")
    with pytest.raises(ArtifactError, match="its ensexport metadata is no JSON"):
        read_metadata(path)


WRONG = {
    "a list": ([1], "n_members"),
    "empty": ({}, "n_members"),
    **{f"no {name}": ({k: v for k, v in METADATA.items() if k != name}, name) for name in METADATA},
    "a count as text": (METADATA | {"n_members": "2"}, "n_members"),
    "a count as bool": (METADATA | {"n_members": True}, "n_members"),
    "outputs as text": (METADATA | {"outputs": "y"}, "outputs"),
}


@pytest.mark.parametrize(("metadata", "name"), WRONG.values(), ids=WRONG)
def test_incomplete_metadata_names_what_is_missing(tmp_path, metadata, name):
    path = MAKERS[".onnx"](tmp_path / "a.onnx", metadata=json.dumps(metadata))
    with pytest.raises(ArtifactError, match=f"its ensexport metadata has no usable '{name}'"):
        read_metadata(path)


def test_metadata_that_contradicts_itself(tmp_path):
    path = MAKERS[".onnx"](tmp_path / "a.onnx", metadata=METADATA | {"n_members": 3})
    with pytest.raises(ArtifactError, match="metadata names 2 members, and counts 3"):
        read_metadata(path)
