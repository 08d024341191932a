"""Static checks of a zip checkpoint before `torch.load` sees it: whole, honest, and weights rather than code.

`torch.load` checks no CRC: one flipped bit loads silently (torch 2.13.0). A re-compressed file of 293 KB can
inflate to 300 MB. Its zip reader takes names without regard to case, Python's does not. TorchScript and `.pt2`
files are programs. All of that can be read off the zip's directory and one pass over its bytes (0.05 s per
200 MB), without unpickling anything.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from ensexport.errors import CheckpointError
from ensexport.members.wording import join_some, quote_path

ZIP_MAGIC = b"PK\x03\x04"
TORCHSCRIPT, EXPORTED = "torchscript", "pt2"
_MAX_ENTRIES = 100_000
_MAX_DIRECTORY_BYTES = 2**26
_MAX_PICKLE_BYTES = 2**28
_CHUNK_BYTES = 2**20
_END, _END_64, _LOCATOR_64, _ENTRY = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02"
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, NotImplementedError)
_DAMAGED_HINT = "Copy or download it again and compare the sizes."


@dataclass(frozen=True)
class Archive:
    """What a zip checkpoint holds.

    Attributes:
        program: `torchscript` or `pt2` if it is a program; None if it is a file of `torch.save`.
        pickle: The bytes of its pickle; empty for a program.
        records: Size in bytes by name, without the top folder; empty for a program.
    """

    program: str | None
    pickle: bytes = b""
    records: Mapping[str, int] = ()  # type: ignore[assignment]


def check_archive(file: BinaryIO, path: str, *, size_bytes: int, is_known: bool = False) -> Archive:
    """Check a zip checkpoint and return what it holds; of a program only that it is one.

    Args:
        file: The open file, anywhere; its position is undefined afterwards.
        path: For messages.
        size_bytes: Size of the file.
        is_known: The checksums were found right before, and the file has not changed.

    Raises:
        CheckpointError: It is truncated or a record fails its CRC (names the record), it was not written by
            `torch.save`, or it holds duplicate, overlapping, compressed, encrypted, too many or oddly named entries.

    Source: torch 2.13.0 caffe2/serialize/inline_container.cc (one top folder, stored entries, a stored CRC of
    0 means "not computed", see torch.serialization.set_crc32_options); PKWARE APPNOTE 6.3.10, 4.3.14 to 4.3.16.
    """
    try:
        _check_end(file, path, size_bytes)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            program = _program([entry.filename for entry in entries])
            if program:
                return Archive(program)
            _check_directory(entries, path, size_bytes)
            _check_places(file, entries, path, archive.start_dir)
            if not is_known:
                _check_records(archive, entries, path)
            data = next(entry for entry in entries if _inner_name(entry) == "data.pkl")
            return Archive(None, _stored_bytes(file, data), {_inner_name(e): e.file_size for e in entries})
    except _BROKEN as error:
        raise CheckpointError(
            f"{quote_path(path)} is truncated or damaged: its zip directory cannot be read "
            f"({size_bytes} bytes: {error}).",
            hint=_DAMAGED_HINT,
        ) from error


def _inner_name(entry: zipfile.ZipInfo) -> str:
    """The name without the top folder, which is named after the file or `archive`."""
    return entry.filename.partition("/")[2]


def _check_end(file: BinaryIO, path: str, size_bytes: int) -> None:
    """Count the entries before Python makes an object of each: 200,000 of them fill 120 MB."""
    file.seek(max(size_bytes - 22, 0))
    end = file.read(22)
    if end[:4] != _END or end[20:] != b"\0\0":
        raise zipfile.BadZipFile("its last 22 bytes are no end of a zip")
    count, directory_bytes, start = struct.unpack("<HII", end[10:20])
    if count == 0xFFFF or 0xFFFFFFFF in {directory_bytes, start}:
        file.seek(size_bytes - 42)
        magic, end_64 = struct.unpack("<4s4xQ", file.read(16))
        file.seek(end_64)
        record = file.read(56)
        if magic != _LOCATOR_64 or record[:4] != _END_64:
            raise zipfile.BadZipFile("it has no zip64 end")
        count, directory_bytes, start = struct.unpack("<QQQ", record[32:56])
    if directory_bytes > min(_MAX_DIRECTORY_BYTES, size_bytes) or start > size_bytes:
        raise zipfile.BadZipFile(f"its directory claims {directory_bytes} bytes at {start}")
    file.seek(start)
    count = max(count, file.read(directory_bytes).count(_ENTRY))  # Python goes by the entries, not by their number
    if count > _MAX_ENTRIES:
        raise _not_ours(path, f"it has {count} entries, more than {_MAX_ENTRIES}")


def _not_ours(path: str, problem: str) -> CheckpointError:
    return CheckpointError(
        f"cannot read {quote_path(path)}: {problem}.", hint="Save it again with torch.save(model.state_dict(), ...)."
    )


def _stored_bytes(file: BinaryIO, entry: zipfile.ZipInfo) -> bytes:
    """Read an uncompressed record; `ZipFile.read` would insist on a checksum that may not be there."""
    file.seek(_data_start(file, entry))
    return file.read(entry.file_size)


def _data_start(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where a record's bytes begin, after the header that stands before them."""
    file.seek(entry.header_offset)
    header = file.read(30)
    if header[:4] != ZIP_MAGIC:
        raise zipfile.BadZipFile(f"no header before {entry.filename!r}")
    name_size, extra_size = struct.unpack("<HH", header[26:])
    if file.read(name_size) != _raw_name(entry):
        raise zipfile.BadZipFile(f"{entry.filename!r} has another name in its header")
    return int(entry.header_offset + 30 + name_size + extra_size)


def _raw_name(entry: zipfile.ZipInfo) -> bytes:
    return entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")


def _program(names: Sequence[str]) -> str | None:
    inner = {name.partition("/")[2] for name in names}
    lower = {name.lower() for name in inner}
    if "constants.pkl" in lower or any(name.startswith("code/") for name in lower):
        return TORCHSCRIPT
    if inner & {"archive_format", "models/model.json"} or "serialized_exported_program.json" in names:
        return EXPORTED
    return None


def _check_directory(entries: list[zipfile.ZipInfo], path: str, size_bytes: int) -> None:
    names = [entry.filename for entry in entries]
    counts = Counter(name.lower() for name in names)
    problem = ""
    if twice := [name for name in names if counts[name.lower()] > 1]:
        problem = f"it has more than one entry {twice[0]!r}"
    elif odd := [name for name in names if name.startswith("/") or ".." in name.split("/") or "\\" in name]:
        problem = f"its entry {odd[0]!r} points outside the archive"
    elif cut := [entry for entry in entries if entry.filename != entry.orig_filename]:
        problem = f"its entry {cut[0].orig_filename!r} has an impossible name"
    elif locked := [entry.filename for entry in entries if entry.flag_bits & 0x1]:
        problem = f"its entry {locked[0]!r} is encrypted"
    elif packed := [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
        problem = f"its entry {packed[0]!r} is compressed, which torch.save never does"
    elif sum(entry.file_size for entry in entries) > size_bytes:
        problem = f"its entries claim more bytes than its {size_bytes}"
    elif len({name.partition("/")[0] for name in names}) != 1 or "data.pkl" not in map(_inner_name, entries):
        problem = f"it is a zip that torch.save did not write: it holds {join_some(names)}"
        problem = problem if names else "it is an empty zip"
    elif next(entry.file_size for entry in entries if _inner_name(entry) == "data.pkl") > _MAX_PICKLE_BYTES:
        problem = f"its pickle is larger than {_MAX_PICKLE_BYTES} bytes"
    if problem:
        raise _not_ours(path, problem)


def _check_places(file: BinaryIO, entries: list[zipfile.ZipInfo], path: str, directory_start: int) -> None:
    """Refuse records that overlap, so that no byte is read in two ways, and bytes before the first one."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end or (not end and entry.header_offset):
            raise _not_ours(path, f"its entry {entry.filename!r} overlaps another one or does not begin the file")
        end = _data_start(file, entry) + entry.file_size
        if entry.compress_size != entry.file_size or end > directory_start:
            raise _not_ours(path, f"its entry {entry.filename!r} claims more bytes than it has")


def _check_records(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], path: str) -> None:
    for entry in entries:
        if not entry.CRC and entry.file_size:
            continue  # written with the checksum switched off
        try:
            with archive.open(entry) as record:
                while record.read(_CHUNK_BYTES):
                    pass
        except _BROKEN as error:
            raise CheckpointError(
                f"{quote_path(path)} is damaged: its record {entry.filename!r} fails its checksum ({error}).",
                hint=_DAMAGED_HINT,
            ) from error
