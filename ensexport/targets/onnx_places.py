"""Where in an ONNX file the values of each initializer lie, found without reading them.

protobuf's own parser takes the whole file into memory, weights and all. Its wire format is walked here instead: the
length in front of each field says where the next one begins. So a file of gigabytes is known after a few reads, and
one member's values can be read or written at their places.

Files may come from anybody: whatever does not add up is refused.

Source: https://protobuf.dev/programming-guides/encoding; onnx 1.23 onnx.proto (field numbers).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ensexport.errors import ArtifactError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_GRAPH, _INITIALIZER = 7, 5  # field numbers: ModelProto, GraphProto
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _EXTERNAL_DATA, _LOCATION = 1, 2, 8, 9, 13, 14  # TensorProto
_EXTERNAL = 1  # TensorProto.DataLocation
_MAX_TEXT_BYTES = 65536
_HINT = "Give a file that ensexport packed."


@dataclass(frozen=True)
class Place:
    """Where the values of one initializer lie.

    Attributes:
        file: The ONNX file, or its external data.
        offset: Where they begin.
        n_bytes: How long they are.
        data_type: ONNX's number of the dtype.
        shape: The shape.
    """

    file: Path
    offset: int
    n_bytes: int
    data_type: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class OnnxPlaces:
    """What is known of a file.

    Attributes:
        initializers: Name -> place, of those whose values are raw bytes.
        graph_end: Where the graph ends in the ONNX file.
        data: The files of external data.
    """

    initializers: Mapping[str, Place]
    graph_end: int
    data: tuple[Path, ...]


@dataclass(frozen=True)
class _Field:
    """One field of a message: a number, or the place of a run of bytes."""

    number: int
    wire: int
    value: int
    begin: int
    end: int


def find_places(path: Path) -> OnnxPlaces:
    """Find where in an ONNX file, or beside it, the values of its initializers lie.

    Args:
        path: The `.onnx` file.

    Raises:
        ArtifactError: It is no ONNX file or is damaged: a length points beyond the end, a name stands twice, values
            overlap, or external data is missing, too short, or lies in another folder.
    """
    try:
        with path.open("rb") as file:
            reader = _Reader(path, file)
            graphs = [field for field in reader.fields(0, reader.size) if field.number == _GRAPH]
            if len(graphs) != 1 or graphs[0].wire != _BYTES:
                raise reader.damaged(f"expected one graph, got {len(graphs)}")
            places: dict[str, Place] = {}
            for field in reader.fields(graphs[0].begin, graphs[0].end):
                if field.number != _INITIALIZER:
                    continue
                name, place = reader.initializer(field)
                if name in places:
                    raise reader.damaged(f"the initializer '{name[:80]}' stands in it twice")
                if place is not None:
                    places[name] = place
        _check_external(path, places)
    except OSError as error:
        raise ArtifactError(f"cannot read '{path}': {error.strerror or error}.", hint=_HINT) from error
    data = dict.fromkeys(place.file for place in places.values() if place.file != path)
    return OnnxPlaces(places, graphs[0].end, tuple(data))


class _Reader:
    """Walks the wire format of one file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.size = os.fstat(file.fileno()).st_size

    def damaged(self, why: str) -> ArtifactError:
        return ArtifactError(f"cannot use '{self.path}': as ONNX it is damaged: {why}.", hint=_HINT)

    def fields(self, begin: int, end: int) -> Iterator[_Field]:
        """The fields of a message that lies between two places."""
        position = begin
        while position < end:
            key, position = self._varint(position, end)
            number, wire = key >> 3, key & 7
            value, start, length = 0, position, 0
            if wire == _VARINT:
                value, position = self._varint(position, end)
            elif wire == _BYTES:
                length, start = self._varint(position, end)
                position = start + length
            elif wire in (_FIXED32, _FIXED64):
                position += 4 if wire == _FIXED32 else 8
            else:
                raise self.damaged(f"there is no field of kind {wire} (at byte {start})")
            if position > end or number == 0:
                raise self.damaged(f"field {number} at byte {start} ends beyond what holds it")
            yield _Field(number, wire, value, start, start + length)

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        self.file.seek(position)
        number = 0
        for count, byte in enumerate(self.file.read(min(10, end - position))):
            number |= (byte & 127) << (7 * count)
            if byte < 128:
                return number & (2**64 - 1), position + count + 1
        raise self.damaged(f"a number at byte {position} does not end")

    def text(self, field: _Field) -> str:
        """A field's bytes as text."""
        if field.wire != _BYTES or field.end - field.begin > _MAX_TEXT_BYTES:
            raise self.damaged(f"the name at byte {field.begin} is none")
        self.file.seek(field.begin)
        try:
            return self.file.read(field.end - field.begin).decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"the name at byte {field.begin} is no text") from error

    def initializer(self, tensor: _Field) -> tuple[str, Place | None]:
        """Name and place of one `TensorProto`; no place where its values are no raw bytes."""
        if tensor.wire != _BYTES:
            raise self.damaged("an initializer is none")
        name, kind, is_external = "", 0, False
        shape: list[int] = []
        raw: list[_Field] = []
        external: dict[str, str] = {}
        for field in self.fields(tensor.begin, tensor.end):
            if field.number == _NAME:
                name = self.text(field)
            elif field.number == _DATA_TYPE:
                kind = field.value
            elif field.number == _DIMS:
                shape += self._numbers(field)
            elif field.number == _RAW_DATA and field.wire == _BYTES:
                raw.append(field)
            elif field.number == _LOCATION:
                is_external = field.value == _EXTERNAL
            elif field.number == _EXTERNAL_DATA and field.wire == _BYTES:
                external |= self._entry(field)
        if not name or len(raw) > 1:
            raise self.damaged(f"the initializer at byte {tensor.begin} has no name, or values twice")
        if is_external:
            return name, self._outside(name, external, kind, tuple(shape))
        if not raw:
            return name, None
        return name, Place(self.path, raw[0].begin, raw[0].end - raw[0].begin, kind, tuple(shape))

    def _numbers(self, field: _Field) -> list[int]:
        """A repeated number: one a field, or packed into a run of bytes."""
        if field.wire == _VARINT:
            return [field.value]
        numbers, position = [], field.begin
        while position < field.end:
            number, position = self._varint(position, field.end)
            numbers.append(number)
        return numbers

    def _entry(self, entry: _Field) -> dict[str, str]:
        texts = {field.number: self.text(field) for field in self.fields(entry.begin, entry.end)}
        return {texts.get(1, ""): texts.get(2, "")}

    def _outside(self, name: str, entries: Mapping[str, str], kind: int, shape: tuple[int, ...]) -> Place:
        location = entries.get("location", "")
        if not location or location in (".", "..") or {"/", "\\", "\0"} & set(location):
            raise self.damaged(f"the values of '{name[:80]}' lie in {location[:80]!r}, which is no file beside it")
        numbers = [entries.get("offset", "0"), entries.get("length", "")]
        if not all(text.isascii() and text.isdecimal() and len(text) < 20 for text in numbers):
            raise self.damaged(f"where the values of '{name[:80]}' lie is said with no numbers")
        return Place(self.path.with_name(location), int(numbers[0]), int(numbers[1]), kind, shape)


def _check_external(path: Path, places: Mapping[str, Place]) -> None:
    """Refuse external data that is not there, is too short, or that two initializers share."""
    outside = sorted(
        (place.file, place.offset, place.n_bytes, name) for name, place in places.items() if place.file != path
    )
    for file, offset, n_bytes, name in outside:
        if file.is_symlink() or not file.is_file():
            what = "is a link" if file.is_symlink() else "is missing"
            raise ArtifactError(f"cannot use '{path}': its external data '{file.name}' {what}.", hint=_HINT)
        if offset + n_bytes > file.stat().st_size:
            raise ArtifactError(
                f"cannot use '{path}': its external data '{file.name}' ends before the values of '{name[:80]}': "
                f"expected {offset + n_bytes} bytes or more, got {file.stat().st_size}.",
                hint=_HINT,
            )
    for (file, offset, n_bytes, name), (other, begin, _, later) in itertools.pairwise(outside):
        if file == other and offset + n_bytes > begin:
            raise ArtifactError(
                f"cannot use '{path}': the values of '{name[:80]}' and '{later[:80]}' overlap in '{file.name}'.",
                hint=_HINT,
            )
