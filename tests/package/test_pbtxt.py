import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ensexport.package.pbtxt import Enum, Message, map_entry, write_message


def parsed(*fields):
    return text_format.Parse(write_message(Message(fields)), model_config_pb2.ModelConfig())


TEXTS = [
    "plain", "", 'a "quote"', "back\\slash", "\\n is no line end", "line\nend\r\ttab", "straße 犬 🐕",
    "\x00\x01\x1b[0m\x7f",
    "no-break\u00a0space", "line\u2028separator", "0\x007 octal beside a digit", "# no comment", "'", "}",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_every_text_comes_back_as_it_was(text):
    assert parsed(("name", text)).name == text
    assert write_message(Message((("name", text),))).count("\n") == 1


def test_scalars_lists_messages_and_maps_come_back():
    config = parsed(
        ("#", "two\nlines, and an empty one:\n"),
        ("max_batch_size", 8),
        ("input", (Message((("name", "x"), ("dims", (-1, 4)), ("optional", True), ("data_type", Enum("TYPE_FP32")))),
                   Message((("name", "y"), ("optional", False), ("reshape", Message((("shape", ()),))))))),
        ("parameters", map_entry("a", Message((("string_value", "b"),)))),
    )  # fmt: skip
    assert config.max_batch_size == 8
    assert [(io.name, list(io.dims), io.optional) for io in config.input] == [("x", [-1, 4], True), ("y", [], False)]
    assert config.input[0].data_type == model_config_pb2.TYPE_FP32
    assert config.input[1].HasField("reshape")
    assert config.parameters["a"].string_value == "b"


def test_the_text_is_laid_out_as_people_write_it():
    fields = (
        ("#", "why"),
        ("name", "fraud"),
        ("input", (Message((("dims", (-1, 4)),)), Message((("#", "why"), ("dims", (2,)))))),
        ("dynamic_batching", Message((("max_queue_delay_microseconds", 100),))),
    )
    assert write_message(Message(fields)).splitlines() == [
        "# why",
        'name: "fraud"',
        "input [",
        "  {",
        "    dims: [ -1, 4 ]",
        "  },",
        "  {",
        "    # why",
        "    dims: [ 2 ]",
        "  }",
        "]",
        "dynamic_batching {",
        "  max_queue_delay_microseconds: 100",
        "}",
    ]
