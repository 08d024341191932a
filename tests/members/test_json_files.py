import os

import pytest

from ensexport.errors import CheckpointError
from ensexport.members.json_files import read_json_object


def message(path, max_bytes=100):
    with pytest.raises(CheckpointError) as caught:
        read_json_object(path, max_bytes=max_bytes)
    return str(caught.value)


def test_an_object_is_returned(tmp_path):
    path = tmp_path / "c.json"
    path.write_bytes('{"a": "é"}'.encode())
    assert read_json_object(str(path), max_bytes=11) == {"a": "é"}


def test_each_failure_names_the_file_and_what_is_wrong(tmp_path):
    path = tmp_path / "c.json"
    assert message(path) == f"cannot read '{path}': No such file or directory. Check its permissions."
    path.write_text("[1]")
    assert message(path) == f"cannot use '{path}': expected a JSON object, got list. Copy it again."
    path.write_text('{"a": 1')
    assert "it is no JSON (Expecting" in message(path)
    path.write_bytes(b"\xff\xfe\xfd")
    assert "it is no JSON ('utf-" in message(path)
    path.write_text("[" * 10**5)
    assert "it is no JSON (" in message(path, 10**6)
    path.write_text('{"a": ' + "1" * 5000 + "}")
    assert "it is no JSON (" in message(path, 10**6)
    path.write_text(" " * 101)
    assert f"cannot read '{path}': expected at most 100 bytes, got 101." in message(path)
    assert f"cannot read '{tmp_path}': it is not a regular file." in message(tmp_path)


def test_a_pipe_and_a_device_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert "not a regular file" in message(tmp_path / "pipe")
    assert "not a regular file" in message(tmp_path / "zero")
