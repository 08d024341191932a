import io
import warnings
import zipfile

import pytest
import torch

from ensexport.errors import CheckpointError
from ensexport.members import archive
from ensexport.members.archive import check_archive


def saved(obj):
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return buffer.getvalue()


def check(data):
    return check_archive(io.BytesIO(data), "m.pt", size_bytes=len(data))


def zipped(entries, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a duplicate name is the point of one test
        for name, data in entries:
            file.writestr(name, data)
    return buffer.getvalue()


GOOD = [("m/data.pkl", b"."), ("m/version", b"3")]


def test_an_honest_file_gives_its_pickle():
    found = check(saved({"w": torch.randn(5)}))
    assert found.pickle.startswith(b"\x80\x02")
    assert found.records["data/0"] == 20
    assert found.program is None


def test_a_file_saved_without_checksums_is_fine():
    torch.serialization.set_crc32_options(False)
    try:
        data = saved({"w": torch.randn(5)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert check(data).pickle.startswith(b"\x80\x02")


def test_a_flipped_bit_in_the_weights_names_the_record():
    weight = torch.randn(50)
    data = bytearray(saved({"w": weight}))
    data[data.index(weight.numpy().tobytes()) + 17] ^= 4
    with pytest.raises(CheckpointError, match=r"'m.pt' is damaged: its record 'archive/data/0' fails its checksum"):
        check(bytes(data))


@pytest.mark.parametrize("cut", [lambda n: n // 2, lambda n: n - 10], ids=["half", "last 10 bytes"])
def test_a_cut_file_is_said_to_be_truncated(cut):
    data = saved({"w": torch.randn(50)})
    with pytest.raises(CheckpointError, match=rf"'m.pt' is truncated or damaged: .*\({cut(len(data))} bytes"):
        check(data[: cut(len(data))])


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([*GOOD, ("m/version", b"4")], "more than one entry 'm/version'"),
        ([*GOOD, ("m/DATA.PKL", b"")], "more than one entry 'm/data.pkl'"),
        ([*GOOD, ("/etc/x", b"")], "'/etc/x' points outside the archive"),
        ([*GOOD, ("m/../x", b"")], r"'m/\.\./x' points outside the archive"),
        (
            [*GOOD, ("n/other", b"")],
            "a zip that torch.save did not write: it holds m/data.pkl, m/version, n/other",
        ),
        ([("a.npy", b"x")], "a zip that torch.save did not write: it holds a.npy"),
        ([], "it is an empty zip"),
    ],
    ids=["duplicate", "duplicate but for case", "absolute", "parent folder", "two top folders", "npz", "empty"],
)
def test_an_odd_zip_is_refused(entries, problem):
    with pytest.raises(CheckpointError, match=f"cannot read 'm.pt': .*{problem}"):
        check(zipped(entries))


def test_a_compressed_entry_is_refused_before_it_is_inflated():
    data = zipped([("m/data.pkl", b"."), ("m/data/0", bytes(10**7))], zipfile.ZIP_DEFLATED)
    assert len(data) < 20_000
    with pytest.raises(CheckpointError, match=r"'m/data.pkl' is compressed"):
        check(data)


def test_an_encrypted_entry_is_refused():
    data = bytearray(zipped(GOOD))
    start = data.index(b"PK\x01\x02")  # the first entry of the central directory; its flags are at offset 8
    data[start + 8] |= 1
    with pytest.raises(CheckpointError, match=r"'m/data.pkl' is encrypted"):
        check(bytes(data))


def test_entries_that_claim_more_than_the_file_holds_are_refused():
    data = bytearray(zipped(GOOD))
    start = data.index(b"PK\x01\x02")
    data[start + 20 : start + 28] = (10**9).to_bytes(4, "little") * 2  # compressed and full size
    with pytest.raises(CheckpointError, match=f"claim more bytes than its {len(data)}|truncated or damaged"):
        check(bytes(data))


def test_too_many_entries_are_refused(monkeypatch):
    monkeypatch.setattr(archive, "_MAX_ENTRIES", 2)
    check(zipped(GOOD))
    with pytest.raises(CheckpointError, match="it has 3 entries, more than 2"):
        check(zipped([*GOOD, ("m/data/0", b"")]))


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["m/constants.pkl", "m/data.pkl"], "torchscript"),
        (["m/data.pkl", "m/code/__torch__.py"], "torchscript"),
        (["m/archive_format", "m/models/model.json"], "pt2"),
        (["serialized_exported_program.json", "version"], "pt2"),
    ],
    ids=["constants", "code", "pt2", "pt2 before torch 2.7"],
)
def test_programs_are_told_by_their_entries(names, kind):
    assert check(zipped([(name, b"") for name in names])).program == kind


def test_bytes_before_the_zip_are_refused():
    data = zipped(GOOD)
    with pytest.raises(CheckpointError, match="does not begin the file"):
        check(data[:30] + data)


def test_bytes_after_the_zip_are_refused():
    with pytest.raises(CheckpointError, match="its last 22 bytes are no end of a zip"):
        check(zipped(GOOD) + b"more")


def test_a_name_that_differs_before_the_record_is_refused():
    with pytest.raises(CheckpointError, match="'m/version' has another name in its header"):
        check(zipped(GOOD).replace(b"m/version", b"m/VERSION", 1))


def test_records_that_overlap_are_refused():
    data = bytearray(zipped([("m/data.pkl", b"." * 100), ("m/version", b"3")]))
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    data[second + 42 : second + 46] = (50).to_bytes(4, "little")  # where its header is said to be
    with pytest.raises(CheckpointError, match="'m/version' overlaps another one"):
        check(bytes(data))
