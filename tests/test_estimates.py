"""What packing is expected to take."""

import pytest

from ensexport.errors import MemoryLimitError, OutputError
from ensexport.estimates import estimate

GB = 10**9


def test_packing_alone_does_not_grow_with_the_members():
    few, many = (estimate(["onnx"], GB, n, n_validated=0) for n in (4, 400))
    assert few.memory_bytes == many.memory_bytes < 3 * GB
    assert (few.disk_bytes, many.disk_bytes) == (4 * GB, 400 * GB)


def test_comparing_takes_the_packed_file_and_one_member():
    expected = estimate(["onnx"], GB, 10, n_validated=2)
    assert 12 * GB < expected.memory_bytes < 16 * GB
    assert set(expected.phases) == {"pack", "validate"}


def test_torch_writes_its_files_in_memory_and_from_a_scratch_file():
    expected = estimate(["onnx", "torchscript"], GB, 10, n_validated=0)
    assert expected.memory_bytes > 20 * GB
    assert expected.disk_bytes == 20 * GB


def test_what_is_equal_in_all_members_is_kept_once():
    expected = estimate(["onnx"], GB, 100, n_validated=1, equal_bytes=GB - 10**6)
    assert expected.packed_bytes == GB - 10**6 + 100 * 10**6


def test_with_external_data_there_is_no_scratch_file():
    assert estimate(["onnx", "torchscript"], GB, 1, n_validated=0).disk_bytes == 3 * GB
    assert estimate(["onnx", "torchscript"], GB, 3, n_validated=0).disk_bytes == 6 * GB


def test_it_is_said_in_words_and_as_json():
    expected = estimate(["onnx"], 346_000_000, 10, n_validated=10)
    text = str(expected)
    assert text.startswith("estimate for 10 members of 346.0 MB: 5.2 GB of memory")
    assert text.endswith("3.5 GB of disk")
    assert expected.to_dict() == {
        "memory_bytes": expected.memory_bytes,
        "disk_bytes": 3_460_000_000,
        "phases": {"pack": 1_192_000_000, "validate": expected.memory_bytes},
    }


def test_more_than_there_is_is_refused_with_both_numbers(tmp_path):
    huge = estimate(["onnx"], 10**15, 10, n_validated=10)
    with pytest.raises(
        MemoryLimitError, match=r"cannot pack 10 members: .* GB of memory are needed .* are left"
    ) as found:
        huge.check_memory()
    assert found.value.details["needed_bytes"] > 10**15
    with pytest.raises(OutputError, match=r"10000000\.0 GB are needed, and .* are free on that disk"):
        huge.check_disk([tmp_path / "e.onnx"])
    assert "--validate-members none" in _refusal(estimate(["onnx"], 10**9, 10**5, n_validated=1)).hint
    assert ".ts and .pt2" in _refusal(estimate(["torchscript"], 10**9, 10**5, n_validated=0)).hint


def _refusal(expected):
    """The error of an estimate that does not fit."""
    with pytest.raises(MemoryLimitError) as found:
        expected.check_memory()
    return found.value
