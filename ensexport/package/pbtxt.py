"""Writing protobuf's text format, as Triton's `config.pbtxt` is written.

By hand, because the messages are Triton's: a protobuf library would need its generated classes, and those come with a
client that nobody needs to pack. The same fields give the same bytes everywhere.

Source: https://protobuf.dev/reference/protobuf/textformat-spec/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Enum:
    """A value of an enum, written without quotes: `TYPE_FP32`."""

    name: str


@dataclass(frozen=True)
class Message:
    """Fields in the order in which they are written.

    Attributes:
        fields: Name and value. A list is a repeated field. The name `#` stands for a comment.
    """

    fields: tuple[tuple[str, Value], ...]


Scalar = str | int | bool | Enum
Value = Scalar | Message | Sequence[Scalar] | Sequence[Message]

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def write_message(message: Message, indent: str = "") -> str:
    """Return a message as text, one field a line.

    Args:
        message: What to write.
        indent: Before each line.
    """
    return "".join(_field(name, value, indent) for name, value in message.fields)


def map_entry(key: str, value: Scalar | Message) -> Message:
    """Return one entry of a map field, which is written as a message with `key` and `value`."""
    return Message((("key", key), ("value", value)))


def _field(name: str, value: Value, indent: str) -> str:
    if name == "#":
        return "".join(f"{indent}# {line}".rstrip() + "\n" for line in str(value).splitlines())
    if isinstance(value, Message):
        return f"{indent}{name} {{\n{write_message(value, indent + '  ')}{indent}}}\n"
    if isinstance(value, str | int | Enum):
        return f"{indent}{name}: {_scalar(value)}\n"
    messages = [item for item in value if isinstance(item, Message)]
    if messages:
        inner = indent + "  "
        items = ",\n".join(f"{inner}{{\n{write_message(item, inner + '  ')}{inner}}}" for item in messages)
        return f"{indent}{name} [\n{items}\n{indent}]\n"
    items = ", ".join(_scalar(item) for item in value if not isinstance(item, Message))
    return f"{indent}{name}: [ {items} ]\n" if items else f"{indent}{name}: [ ]\n"


def _scalar(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Enum):
        return value.name
    return '"' + "".join(map(_escaped, value)) + '"'


def _escaped(char: str) -> str:
    """One character of a string: UTF-8 as it is, control characters as octal escapes of their bytes."""
    if char in _ESCAPES:
        return _ESCAPES[char]
    return char if char.isprintable() else "".join(f"\\{byte:03o}" for byte in char.encode())
