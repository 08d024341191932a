"""What stands behind the graph in an ONNX file: its metadata, read and changed without the graph."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from ensexport.errors import ArtifactError

_HINT = "Give a file that ensexport packed."
_MAX_BYTES = 2**28


def read_tail(path: Path, graph_end: int) -> onnx.ModelProto:
    """Return the fields behind the graph: opsets, metadata, functions.

    Args:
        path: The ONNX file.
        graph_end: Where its graph ends.

    Raises:
        ArtifactError: They are no part of an ONNX file.
    """
    with path.open("rb") as file:
        file.seek(graph_end)
        data = file.read(_MAX_BYTES + 1)
    tail = onnx.ModelProto()
    try:
        if len(data) > _MAX_BYTES:
            raise DecodeError("too long")
        tail.ParseFromString(data)
    except DecodeError as error:
        raise ArtifactError(f"cannot read '{path}' as ONNX: {error}.", hint=_HINT) from error
    return tail


def set_metadata(model: onnx.ModelProto, key: str, text: str) -> None:
    """Change the value of one entry, in its place."""
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = text


def read_without_weights(path: Path, location: str) -> onnx.ModelProto:
    """Return a model whose weights lie beside it, and say that they lie in another file.

    Args:
        path: The ONNX file; it is small, for its weights are not in it.
        location: Name of the file of external data.
    """
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    return model
