"""Static checks of a zip checkpoint before `torch.load` sees it: whole, honest, and weights rather than code.

`torch.load` checks no CRC: one flipped bit loads silently (torch 2.13.0). A re-compressed file of 293 KB can
inflate to 300 MB. TorchScript and `.pt2` files are programs. All of that can be read off the zip's directory
and one pass over its bytes (0.05 s per 200 MB), without unpickling anything.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections import Counter
from typing import BinaryIO

from ensexport.errors import CheckpointError, UnsafeCheckpointError
from ensexport.members.wording import join_some, quote_path

ZIP_MAGIC = b"PK\x03\x04"
_MAX_ENTRIES = 100_000
_CHUNK_BYTES = 2**20
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, NotImplementedError)
_DAMAGED_HINT = "Copy or download it again and compare the sizes."


def check_archive(file: BinaryIO, path: str, *, size_bytes: int) -> bytes:
    """Check a zip checkpoint and return the bytes of its pickle.

    Args:
        file: The open file, anywhere; its position is undefined afterwards.
        path: For messages.
        size_bytes: Size of the file.

    Raises:
        UnsafeCheckpointError: It is a TorchScript or `torch.export` program.
        CheckpointError: It is truncated or a record fails its CRC (names the record), it was not written by
            `torch.save`, or it holds duplicate, compressed, encrypted, too many or oddly named entries.

    Source: torch 2.13.0 caffe2/serialize/inline_container.cc (one top folder, stored entries, a stored CRC of
    0 means "not computed", see torch.serialization.set_crc32_options).
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _refuse_programs([entry.filename for entry in entries], path)
            _check_directory(entries, path, size_bytes)
            _check_records(archive, entries, path)
            return _stored_bytes(file, next(entry for entry in entries if _inner_name(entry) == "data.pkl"))
    except _BROKEN as error:
        raise CheckpointError(
            f"{quote_path(path)} is truncated or damaged: its zip directory cannot be read "
            f"({size_bytes} bytes: {error}).",
            hint=_DAMAGED_HINT,
        ) from error


def _inner_name(entry: zipfile.ZipInfo) -> str:
    """The name without the top folder, which is named after the file or `archive`."""
    return entry.filename.partition("/")[2]


def _stored_bytes(file: BinaryIO, entry: zipfile.ZipInfo) -> bytes:
    """Read an uncompressed record; `ZipFile.read` would insist on a checksum that may not be there."""
    file.seek(entry.header_offset + 26)
    name_size, extra_size = struct.unpack("<HH", file.read(4))
    file.seek(name_size + extra_size, 1)
    return file.read(entry.file_size)


def _refuse_programs(names: list[str], path: str) -> None:
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        kind, advice = "a TorchScript program", "torch.jit.load(...)"
    elif inner & {"archive_format", "models/model.json"} or "serialized_exported_program.json" in names:
        kind, advice = "a torch.export program (.pt2)", "torch.export.load(...)"
    else:
        return
    raise UnsafeCheckpointError(
        f"refused {quote_path(path)}: it is {kind}, which runs code when it is opened, not a set of weights.",
        hint=f"Where you trust it, save only its weights: torch.save({advice}.state_dict(), ...).",
    )


def _check_directory(entries: list[zipfile.ZipInfo], path: str, size_bytes: int) -> None:
    names = [entry.filename for entry in entries]
    problem = ""
    if len(entries) > _MAX_ENTRIES:
        problem = f"it has {len(entries)} entries, more than {_MAX_ENTRIES}"
    elif twice := [name for name, count in Counter(names).items() if count > 1]:
        problem = f"it has more than one entry {twice[0]!r}"
    elif odd := [name for name in names if name.startswith("/") or ".." in name.split("/")]:
        problem = f"its entry {odd[0]!r} points outside the archive"
    elif locked := [entry.filename for entry in entries if entry.flag_bits & 0x1]:
        problem = f"its entry {locked[0]!r} is encrypted"
    elif packed := [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
        problem = f"its entry {packed[0]!r} is compressed, which torch.save never does"
    elif sum(entry.file_size for entry in entries) > size_bytes:
        problem = f"its entries claim more bytes than its {size_bytes}"
    elif len({name.partition("/")[0] for name in names}) != 1 or "data.pkl" not in map(_inner_name, entries):
        problem = f"it is a zip that torch.save did not write: it holds {join_some(names)}"
        problem = problem if names else "it is an empty zip"
    if problem:
        raise CheckpointError(
            f"cannot read {quote_path(path)}: {problem}.",
            hint="Save it again with torch.save(model.state_dict(), ...).",
        )


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
