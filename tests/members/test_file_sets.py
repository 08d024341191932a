import hashlib
import shutil
import subprocess

import pytest

from ensexport.errors import CheckpointError, IncompleteCheckpointError
from ensexport.members.file_sets import digest_of_files, is_plain_name, neighbour


def test_a_neighbour_is_found_also_by_a_link_inside_the_folder(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x")
    (tmp_path / "b.bin").symlink_to("a.bin")
    assert neighbour(tmp_path, "a.bin", named_in=tmp_path / "t") == tmp_path / "a.bin"
    assert neighbour(tmp_path, "b.bin", named_in=tmp_path / "t") == tmp_path / "b.bin"


def test_a_folder_that_is_a_link_itself_is_no_obstacle(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.bin").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    assert neighbour(tmp_path / "link", "a.bin", named_in=tmp_path) == tmp_path / "link" / "a.bin"


def test_the_links_of_the_hugging_face_cache_may_leave_the_folder(tmp_path):
    snapshot = tmp_path / "models--me--net" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--me--net" / "blobs"
    blobs.mkdir()
    (blobs / "abcd").write_bytes(b"x")
    (snapshot / "a.bin").symlink_to("../../blobs/abcd")
    assert neighbour(snapshot, "a.bin", named_in=snapshot) == snapshot / "a.bin"
    (snapshot / "deep").mkdir()
    (snapshot / "deep" / "a.bin").symlink_to("../../../blobs/abcd")
    assert neighbour(snapshot / "deep", "a.bin", named_in=snapshot) == snapshot / "deep" / "a.bin"


@pytest.mark.parametrize("target", ["../secret", "../blobs/secret", "sub/inner"])
def test_a_link_that_leaves_the_folder_is_refused(tmp_path, target):
    folder = tmp_path / "m"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (folder / target).write_bytes(b"x")
    (folder / "a.bin").symlink_to(target)
    with pytest.raises(CheckpointError, match="it is a link that leaves the folder, to") as caught:
        neighbour(folder, "a.bin", named_in=folder / "t")
    assert str((folder / target).resolve()) in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../a.bin", "/etc/passwd", "sub/a.bin", "..", ".", "", "a\\b", "c:x", "a\nb", "\ud800"]
)
def test_a_name_that_is_not_plain_is_refused(tmp_path, name):
    assert not is_plain_name(name)
    with pytest.raises(CheckpointError, match=r"t' names .*: expected the plain name of a file beside it") as caught:
        neighbour(tmp_path, name, named_in=tmp_path / "t")
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", [None, 3, b"a.bin"])
def test_what_is_no_text_is_no_plain_name(name):
    assert not is_plain_name(name)


def test_a_missing_file_and_a_link_to_itself_are_refused(tmp_path):
    (tmp_path / "loop.bin").symlink_to("loop.bin")
    for name in ("gone.bin", "loop.bin"):
        with pytest.raises(IncompleteCheckpointError, match=f"t' names '{name}', which is not there") as caught:
            neighbour(tmp_path, name, named_in=tmp_path / "t")
        assert caught.value.code == "E_INCOMPLETE"


def test_the_digest_is_that_of_the_sorted_lines():
    lines = "11  .metadata\n22  a.bin\n33  b.bin\n"
    found = digest_of_files({"b.bin": "33", "a.bin": "22", ".metadata": "11"})
    assert found == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.skipif(not (shutil.which("sha256sum") and shutil.which("sh")), reason="needs sha256sum and a shell")
def test_the_digest_is_what_sha256sum_says(tmp_path):
    for name in ("b 1.bin", "B.bin", "\N{SNOWMAN}.bin"):
        (tmp_path / name).write_text(name)
    command = "sha256sum * | LC_ALL=C sort -k 2 | sha256sum"
    said = subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    assert digest_of_files(digests) == said.split()[0]
