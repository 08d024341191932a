"""What a model file says of itself, compared with what the manifest says of it. Nothing is run; torch is not needed."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from ensexport.package.problems import as_text
from ensexport.runtime.runner import METADATA_FILE, METADATA_KEY
from ensexport.weighting import WEIGHTS_INPUT

if TYPE_CHECKING:
    import onnx

_MAX_METADATA_BYTES = 2**28
_SAME = ("n_members", "member_axis", "emit", "member_weights", "dtypes", "dims")
_MEMBER_KEYS = ("index", "name", "sha256", "weights_sha256")


class UnreadableError(ValueError):
    """A model file that cannot be read; says why."""


def read_model(content: bytes) -> onnx.ModelProto:
    """Read an ONNX file, without its external data.

    Args:
        content: Its bytes.

    Raises:
        UnreadableError: They are none.
    """
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise UnreadableError(f"expected an ONNX model, got other bytes ({str(error)[:120]})") from error
    return model


def onnx_problems(model: onnx.ModelProto, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Where an ONNX file is not what the manifest says: opset, inputs, outputs, members.

    Args:
        model: The file.
        manifest: The manifest.
    """
    opsets = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if opsets != [manifest["opset"]]:
        yield f"expected opset {manifest['opset']}, got {', '.join(map(str, opsets)) or 'none'}"
    defaults = {tensor.name for tensor in model.graph.initializer}
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        expected = manifest[f"{kind}s"]
        names = [entry["name"] for entry in expected]
        found = [as_text(value.name) for value in values]
        if found != names:
            yield f"expected the {kind}s {_listed(names)}, got {_listed(found)}"
            continue
        for value, entry in zip(values, expected, strict=True):
            yield from (f"{kind} {value.name!r}: {problem}" for problem in _value_problems(value, entry))
            if kind == "input" and (value.name in defaults) != entry["is_optional"]:
                was = "a default" if entry["is_optional"] else "no default"
                yield f"input {value.name!r}: expected {was}, got {'none' if entry['is_optional'] else 'one'}"
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), "")
    yield from metadata_problems(as_text(text), manifest)


def _value_problems(value: onnx.ValueInfoProto, entry: Mapping[str, Any]) -> Iterator[str]:
    import onnx

    if not value.type.HasField("tensor_type"):
        yield "expected a tensor, got something else"
        return
    tensor = value.type.tensor_type
    names = {"FLOAT": "float32", "DOUBLE": "float64"}
    known = onnx.TensorProto.DataType.DESCRIPTOR.values_by_number
    kind = known[tensor.elem_type].name if tensor.elem_type in known else str(tensor.elem_type)
    dtype = names.get(kind, kind.lower())
    if dtype != entry["dtype"]:
        yield f"expected dtype {entry['dtype']}, got {dtype}"
    if not tensor.HasField("shape"):
        yield f"expected shape {entry['shape']}, got none"
        return
    dims = [dim.dim_value if dim.HasField("dim_value") else as_text(dim.dim_param) or None for dim in tensor.shape.dim]
    if not _fits(dims, entry["shape"]):
        yield f"expected shape {_shape(entry['shape'])}, got {_shape(dims)}"


def _fits(found: Sequence[int | str | None], expected: Sequence[int | str | None]) -> bool:
    """Are two shapes the same? A formula such as `2*batch` can be written in several ways, a name in one."""
    return len(found) == len(expected) and all(
        size == dim or (not (_is_definite(size) and _is_definite(dim)) and not (type(size) is int or type(dim) is int))
        for size, dim in zip(found, expected, strict=True)
    )


def _is_definite(dim: int | str | None) -> bool:
    return isinstance(dim, int) or (isinstance(dim, str) and dim.isidentifier())


def metadata_problems(text: str, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Where the metadata that ensexport writes into a file is not what the manifest says.

    Args:
        text: The metadata; empty if the file has none.
        manifest: The manifest.
    """
    if not text:
        yield "expected ensexport's metadata, got none"
        return
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        yield "expected ensexport's metadata, got text that is no JSON object"
        return
    for name in _SAME:
        if found.get(name) != manifest[name]:
            yield f"expected {name} {_short(manifest[name])} in its metadata, got {_short(found.get(name))}"
    inputs = [str(spec).partition(":")[0] for spec in _sequence(found.get("inputs"))]
    expected = [entry["name"] for entry in manifest["inputs"]]
    if manifest["member_weights"] == "input":
        inputs.append(WEIGHTS_INPUT)
    if inputs != expected:
        yield f"expected the inputs {_listed(expected)} in its metadata, got {_listed(inputs)}"
    outputs = [str(name) for name in _sequence(found.get("outputs"))]
    expected = [entry["name"] for entry in manifest["outputs"]]
    if outputs != expected:
        yield f"expected the outputs {_listed(expected)} in its metadata, got {_listed(outputs)}"
    yield from _member_problems(_sequence(found.get("members")), manifest["members"])


def _member_problems(found: Sequence[Any], members: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if len(found) != len(members):
        yield f"expected {len(members)} members in its metadata, got {len(found)}"
        return
    for theirs, member in zip(found, members, strict=True):
        for key in _MEMBER_KEYS:
            value, expected = theirs.get(key) if isinstance(theirs, dict) else None, member[key]
            if value != expected:
                whose = f"member {member['index']}: expected {key}"
                yield f"{whose} {_short(expected)} in its metadata, got {_short(value)}"


def torch_metadata(file: BinaryIO) -> str:
    """Return the metadata text of a TorchScript or `.pt2` file; empty if it has none. No code of it runs.

    Args:
        file: The open file.

    Raises:
        UnreadableError: It is no such archive.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entry = next((e for e in archive.infolist() if e.filename.endswith(f"extra/{METADATA_FILE}")), None)
            if entry is None:
                return ""
            if entry.file_size > _MAX_METADATA_BYTES:
                raise UnreadableError(
                    f"expected metadata of at most {_MAX_METADATA_BYTES} bytes, got {entry.file_size}"
                )
            return archive.read(entry).decode()
    except (zipfile.BadZipFile, NotImplementedError, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise UnreadableError(f"expected an archive of torch's, got other bytes ({error})") from error
    except UnicodeDecodeError as error:
        raise UnreadableError("expected ensexport's metadata, got text that is no UTF-8") from error


def _sequence(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _listed(names: Sequence[str]) -> str:
    return _short(", ".join(names)) if names else "none"


def _shape(dims: Sequence[object]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in dims) + "]"


def _short(value: object) -> str:
    text = value if isinstance(value, str) and value.isprintable() else ascii(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
