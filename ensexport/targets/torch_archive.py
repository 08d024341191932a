"""TorchScript and `.pt2` archives rewritten record by record, without loading them.

Both are zip files whose weights are plain bytes. Torch itself would have to load the program, which runs code of the
file, and to write it anew, which is slow and gives other bytes. So each record is copied as it is, but for those that
change, and what follows from them is worked out as torch does: padding, checksums, and the number that says what the
archive holds. An archive that torch did not write like that is written by torch's own writer of records instead.

Source: torch 2.13, caffe2/serialize/inline_container.cc (getPadding, writeSerializationId); PKWARE APPNOTE 6.3.10.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch

from ensexport.errors import ArtifactError

Patches = Mapping[str, Sequence[tuple[int, memoryview]]]
"""Record -> what is written into it, and where."""

_LOCAL, _CENTRAL, _DESCRIPTOR = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s3I")
_END64, _LOCATOR, _END = struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI"), struct.Struct("<4s4H2IH")
_HAS_DESCRIPTOR, _STORED = 8, 0
_ALIGNMENT = 64
_MAX_BYTES = 2**32 - 2**20  # beyond that zip files have another form
_CHUNK_BYTES = 2**24
_ID = ".data/serialization_id"
_BY_THE_WRITER = {_ID, "version", ".data/version"}
_MASK = 2**64 - 1
_HINT = "Give a file that ensexport packed."


@dataclass(frozen=True)
class Record:
    """One file in the archive.

    Attributes:
        name: Its name, without the archive's own.
        begin: Where its bytes begin, as they are stored.
        n_stored: How many there are.
        n_bytes: How many there are once unpacked.
        crc: Their checksum, unpacked.
        method: How they are packed; 0 for not.
        flags: Of the zip format.
        full_name: Its name as the zip file has it.
    """

    name: str
    begin: int
    n_stored: int
    n_bytes: int
    crc: int
    method: int
    flags: int
    full_name: bytes


def read_records(path: Path) -> tuple[Record, ...]:
    """Return the records of an archive in their order.

    Raises:
        ArtifactError: It is no zip file, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            size = file.seek(0, 2)
            records = tuple(_record(info, file) for info in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, struct.error, OSError, UnicodeError) as error:
        raise ArtifactError(f"cannot read '{path}' as an archive: {error}.", hint=_HINT) from error
    for record in records:
        if record.begin + record.n_stored > size or len({r.name for r in records}) < len(records):
            raise ArtifactError(f"cannot use '{path}': its record '{record.name[:80]}' is damaged.", hint=_HINT)
    return records


def record_start(path: Path) -> dict[str, int]:
    """Name of a record -> where in the archive its bytes begin."""
    return {record.name: record.begin for record in read_records(path)}


def _record(info: zipfile.ZipInfo, file: BinaryIO) -> Record:
    file.seek(info.header_offset)
    fields = _LOCAL.unpack(file.read(_LOCAL.size))
    begin = info.header_offset + _LOCAL.size + fields[9] + fields[10]
    full = info.orig_filename.encode()
    name = info.filename.partition("/")[2]
    return Record(name, begin, info.compress_size, info.file_size, info.CRC, info.compress_type, info.flag_bits, full)


def rewrite_archive(source: Path, target: Path, patches: Patches, replaced: Mapping[str, bytes]) -> None:
    """Copy an archive with some bytes changed.

    Args:
        source: An archive that torch wrote.
        target: Where to write the new one.
        patches: Records that keep their size: what is written into them.
        replaced: Records that are new as a whole.

    Raises:
        ArtifactError: The archive is damaged.
        OSError: The system refuses.
    """
    records = read_records(source)
    if not _is_as_torch_writes(source, records):
        target.write_bytes(_written_by_torch(source, records, patches, replaced))
        return
    with source.open("rb") as given, target.open("wb") as file:
        done: list[tuple[Record, int]] = []
        for record in records:
            offset = file.tell()
            _write_head(file, record)
            written = _write_data(file, given, record, patches, replaced, [r for r, _ in done])
            if record.flags & _HAS_DESCRIPTOR:
                file.write(_DESCRIPTOR.pack(b"PK\7\x08", written.crc, written.n_stored, written.n_bytes))
            done.append((written, offset))
        file.write(_directory(done, file.tell()))


def _write_head(file: BinaryIO, record: Record) -> None:
    start = file.tell() + _LOCAL.size + len(record.full_name) + 4
    padding = -start % _ALIGNMENT
    extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    name = record.full_name
    file.write(
        _LOCAL.pack(b"PK\3\4", _version(record), record.flags, record.method, 0, 0, 0, 0, 0, len(name), len(extra))
    )
    file.write(name + extra)


def _version(record: Record) -> int:
    """Of the zip format, to read the record: 2.0 for one that is packed."""
    return 0 if record.method == _STORED else 20


def _write_data(
    file: BinaryIO,
    given: BinaryIO,
    record: Record,
    patches: Patches,
    replaced: Mapping[str, bytes],
    before: Sequence[Record],
) -> Record:
    """Write a record's bytes; returns the record as it is now."""
    if record.name == _ID:
        given.seek(record.begin)
        names = given.read(record.n_stored)[:20]
        data = names + str(_combined([r.crc for r in before if r.n_bytes])).zfill(20).encode()
    elif record.name in replaced:
        data = replaced[record.name]
    else:
        crc = 0
        for chunk in _patched(given, record, patches.get(record.name, ())):
            crc = zlib.crc32(chunk, crc)
            file.write(chunk)
        return replace(record, crc=crc) if record.method == _STORED else record
    file.write(data)
    return replace(record, crc=zlib.crc32(data), n_bytes=len(data), n_stored=len(data))


def _patched(given: BinaryIO, record: Record, patches: Sequence[tuple[int, memoryview]]) -> Iterator[bytearray]:
    """The bytes of a record, a chunk at a time, with what is written over them."""
    given.seek(record.begin)
    for begin in range(0, record.n_stored, _CHUNK_BYTES):
        chunk = bytearray(given.read(min(_CHUNK_BYTES, record.n_stored - begin)))
        for offset, values in patches:
            first, end = max(offset, begin), min(offset + len(values), begin + len(chunk))
            if first < end:
                chunk[first - begin : end - begin] = values[first - offset : end - offset]
        yield chunk


def _combined(checksums: Sequence[int]) -> int:
    """The number that torch writes into an archive to tell it from others."""
    number = 0
    for checksum in checksums:
        number ^= (checksum + 0x9E3779B9 + ((number << 6) & _MASK) + (number >> 2)) & _MASK
    return number


def _directory(records: Sequence[tuple[Record, int]], begin: int) -> bytes:
    """What stands behind all records: the list of them, and where it is."""
    parts = []
    for record, offset in records:
        sizes = (record.crc, record.n_stored, record.n_bytes)
        head = (b"PK\1\2", 0, _version(record), record.flags, record.method, 0, 0)
        parts.append(_CENTRAL.pack(*head, *sizes, len(record.full_name), 0, 0, 0, 0, 0, offset) + record.full_name)
    whole = b"".join(parts)
    count, size = len(records), len(whole)
    end64 = _END64.pack(b"PK\6\6", _END64.size - 12, 0x31E, 45, 0, 0, count, count, size, begin)
    locator = _LOCATOR.pack(b"PK\6\7", 0, begin + size, 1)
    return whole + end64 + locator + _END.pack(b"PK\5\6", 0, 0, count, count, size, begin, 0)


def _is_as_torch_writes(path: Path, records: Sequence[Record]) -> bool:
    """Would the archive be the same, byte by byte, if it were written here with nothing changed?"""
    if path.stat().st_size >= _MAX_BYTES or not records or len(records) >= 2**16 - 1:
        return False
    with path.open("rb") as file:
        offset, offsets = 0, []
        for record in records:
            head = io.BytesIO()
            head.seek(offset)
            _write_head(head, record)
            file.seek(offset)
            expected = head.getvalue()[offset:]
            if record.begin != offset + len(expected) or file.read(len(expected)) != expected:
                return False
            offsets.append(offset)
            offset = record.begin + record.n_stored
            if record.flags & _HAS_DESCRIPTOR:
                offset += _DESCRIPTOR.size
        file.seek(offset)
        if file.read() != _directory(list(zip(records, offsets, strict=True)), offset):
            return False
        if records[-1].name != _ID or records[-1].n_stored != 40:
            return False
        file.seek(records[-1].begin)
        own = _combined([record.crc for record in records[:-1] if record.n_bytes])
        return file.read(40)[20:] == str(own).zfill(20).encode()


def _written_by_torch(path: Path, records: Sequence[Record], patches: Patches, replaced: Mapping[str, bytes]) -> bytes:
    """The archive from torch's writer, in memory: on a full disk it would end the process."""
    reader, buffer = torch._C.PyTorchFileReader(str(path)), io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    version = next((reader.get_record(r.name) for r in records if r.name in ("version", ".data/version")), b"0")
    writer.set_min_version(int(version))
    for record in records:
        if record.name in _BY_THE_WRITER:
            continue
        data = replaced.get(record.name)
        if data is None:
            whole = bytearray(reader.get_record(record.name))
            for offset, values in patches.get(record.name, ()):
                whole[offset : offset + len(values)] = values
            data = bytes(whole)
        writer.write_record(record.name, data, len(data))
    writer.write_end_of_file()
    return buffer.getvalue()
