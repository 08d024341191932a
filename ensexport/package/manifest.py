"""`manifest.json`: the list of what a package holds, read as data of strangers.

The shape is checked by a JSON schema (`manifest.schema.json` beside this file), what a schema cannot say in code:
that what one entry names is listed by another.
"""

from __future__ import annotations

import errno
import functools
import itertools
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensexport.errors import PackageError
from ensexport.members.wording import join_some, quote_path

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
MODEL_FORMATS = ("onnx", "torchscript", "pt2")
MAX_BYTES = 2**25
_MAX_DIGITS = 20
_SCHEMA = Path(__file__).with_name("manifest.schema.json")
_HINT = "Pack again, or get the package anew from where it was made."


class _ContentError(ValueError):
    """What is wrong with the text of a manifest."""


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """Return the text of a manifest: the same for the same content, on every machine.

    Args:
        manifest: What the schema describes.

    Raises:
        ValueError: It holds NaN or Inf; `spec.json_number` says them as texts.
    """
    text = json.dumps(manifest, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    # A file name that is no UTF-8 holds lone surrogates, which UTF-8 cannot write; `\udc80` is how JSON writes them.
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def is_package(path: str | Path) -> bool:
    """Is this a folder with a manifest of ours? Reads that file alone, checks nothing and loads nothing heavy."""
    try:
        with os.fdopen(_open_regular(Path(path) / MANIFEST), "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError:
        return False
    return len(content) <= MAX_BYTES and b'"schema_version"' in content and b'"ensexport"' in content


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the manifest of a package, checked in itself; the files that it lists are not looked at.

    Args:
        folder: The package.

    Raises:
        PackageError: There is none, it is a link, too large, no strict JSON, of a later version, does not follow the
            schema, or contradicts itself. `problems` in the details lists all that is wrong.
    """
    return parse_manifest(read_manifest_bytes(folder), folder)


def read_manifest_bytes(folder: str | Path) -> bytes:
    """Return the bytes of a package's manifest.

    Args:
        folder: The package.

    Raises:
        PackageError: There is none, it is a link, too large, or cannot be read.
    """
    path = Path(folder) / MANIFEST
    try:
        with os.fdopen(_open_regular(path), "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(Path(folder), error) from error
    if len(content) > MAX_BYTES:
        raise PackageError(f"cannot read {quote_path(path)}: expected at most {MAX_BYTES} bytes, got more.", hint=_HINT)
    return content


def parse_manifest(content: bytes, folder: str | Path) -> dict[str, Any]:
    """Return what the bytes of a manifest say.

    Args:
        content: The bytes.
        folder: The package, for messages.

    Raises:
        PackageError: As for `read_manifest`.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = _strict_json(content)
    except _ContentError as error:
        raise PackageError(f"cannot read {quote_path(path)}: {error}.", hint=_HINT) from error
    version = manifest.get("schema_version")
    if type(version) is int and version > SCHEMA_VERSION:
        raise PackageError(
            f"cannot use {quote_path(path)}: it is of schema version {version}: expected {SCHEMA_VERSION}.",
            hint="A later ensexport wrote it: install that one.",
        )
    problems = list(_schema_problems(manifest)) or list(_contradictions(manifest))
    if problems:
        raise PackageError(
            f"cannot use {quote_path(path)}: {join_some(problems, limit=8)}.", hint=_HINT, problems=problems
        )
    return manifest


def _open_regular(path: Path) -> int:
    """Open a file for reading that must be one: no link, no pipe (which would block), no device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return descriptor


def _unreadable(folder: Path, error: OSError) -> PackageError:
    path = quote_path(folder / MANIFEST)
    if error.errno == errno.ELOOP:
        return PackageError(f"cannot read {path}: expected a file, got a symbolic link.", hint=_HINT)
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        return PackageError(f"cannot read {path}: {error.strerror or error}.", hint=_HINT)
    if not folder.exists():
        return PackageError(f"cannot read {quote_path(folder)}: there is no such folder.", hint="Check the path.")
    what = f"it holds no {MANIFEST}" if folder.is_dir() else "expected a folder, got a file"
    return PackageError(
        f"cannot read {quote_path(folder)} as a package: {what}.", hint="Give a folder that `ensexport pack` wrote."
    )


def _strict_json(content: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_bounded,
        )
    except _ContentError:
        raise
    except (ValueError, RecursionError) as error:
        raise _ContentError(f"it is no JSON ({str(error)[:200]})") from error
    if not isinstance(manifest, dict):
        raise _ContentError(f"expected a JSON object, got {type(manifest).__name__}")
    return manifest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _ContentError(f"the key {twice[:100]!r} is there twice in one object")
    return found


def _no_constant(text: str) -> float:
    raise _ContentError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _ContentError(f"the number {text[:40]} is beyond a float64")
    return number


def _bounded(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise _ContentError(f"the number {text[:40]}... has {len(text)} digits")
    return int(text)


@functools.cache
def _validator() -> Validator:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    # JSON Schema takes 1.0 for an integer; Python code that indexes with it does not.
    checker = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    made: Validator = extend(Draft202012Validator, type_checker=checker)(json.loads(_SCHEMA.read_text("utf-8")))
    return made


def _schema_problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    from jsonschema.exceptions import best_match

    for error in _validator().iter_errors(manifest):
        inner: ValidationError = best_match([error]) or error
        where = inner.json_path.removeprefix("$").removeprefix(".") or "the whole"
        text = " ".join(inner.message.split())
        yield f"{where}: {text if len(text) <= 200 else text[:120] + ' ... ' + text[-80:]}"


def _contradictions(manifest: Mapping[str, Any]) -> Iterator[str]:
    paths = [entry["path"] for entry in manifest["files"]]
    for path, following in itertools.pairwise(paths):
        if path == following:
            yield f"files: {quote_path(path)} is listed twice"
        elif path > following:
            yield f"files: {quote_path(following)} stands behind {quote_path(path)}: expected an order by path"
    if MANIFEST in paths:
        yield f"files: {MANIFEST} lists itself"
    formats = {entry["path"]: entry["format"] for entry in manifest["files"]}
    yield from _model_contradictions(manifest, formats)
    indices = [member["index"] for member in manifest["members"]]
    if len(indices) != manifest["n_members"] or indices != list(range(len(indices))):
        yield (
            f"members: expected the indices 0 to {manifest['n_members'] - 1} in order, got "
            f"{join_some([str(index) for index in indices])}"
        )
    for place, swap in enumerate(manifest["swaps"]):
        if swap["member_index"] >= manifest["n_members"]:
            yield f"swaps[{place}].member_index: expected less than {manifest['n_members']}, got {swap['member_index']}"
    for kind in ("inputs", "outputs"):
        names = [entry["name"] for entry in manifest[kind]]
        yield from (f"{kind}: {name!r} is there twice" for name in sorted(_repeated(names)))
    yield from _sample_contradictions(manifest, formats)


def _model_contradictions(manifest: Mapping[str, Any], formats: Mapping[str, str]) -> Iterator[str]:
    models = [path for path, kind in formats.items() if kind in MODEL_FORMATS]
    if not models:
        yield f"files: no model is listed: expected one of the formats {', '.join(MODEL_FORMATS)}"
    has_onnx = "onnx" in formats.values()
    if has_onnx != (manifest["opset"] is not None):
        yield f"opset: it is {manifest['opset']}, and {'an' if has_onnx else 'no'} ONNX file is listed"
    for path, kind in formats.items():
        if kind == "onnx_data" and formats.get(path.removesuffix(".data")) != "onnx":
            yield f"files: {quote_path(path)} holds the weights of no ONNX file that is listed"
    for row in manifest["validation"]["table"]:
        if row["file"] not in models:
            yield f"validation.table: {quote_path(row['file'])} is no model that is listed"
    members = manifest["validation"]["members"]
    if members != "all" and max(members, default=0) >= manifest["n_members"]:
        yield f"validation.members: expected numbers below {manifest['n_members']}, got {members}"


def _sample_contradictions(manifest: Mapping[str, Any], formats: Mapping[str, str]) -> Iterator[str]:
    known = {kind: {entry["name"] for entry in manifest[kind]} for kind in ("inputs", "outputs")}
    needed = {entry["name"] for entry in manifest["inputs"] if not entry["is_optional"]}
    used: list[str] = []
    for place, sample in enumerate(manifest["samples"]):
        where = f"samples[{place}]"
        for kind in ("inputs", "outputs"):
            names = [entry["name"] for entry in sample[kind]]
            yield from (f"{where}.{kind}: {name!r} is there twice" for name in sorted(_repeated(names)))
            for name in sorted(set(names) - known[kind]):
                yield f"{where}.{kind}: {name!r} is none of the package's {kind}"
            for number, entry in enumerate(sample[kind]):
                used.append(entry["path"])
                expected = f"{sample['folder']}/{kind[:-1]}_{number}.pb"
                if entry["path"] != expected:
                    got = quote_path(entry["path"])
                    yield f"{where}.{kind}[{number}]: expected the path {quote_path(expected)}, got {got}"
                elif formats.get(expected) != "sample":
                    yield f"{where}.{kind}[{number}]: {quote_path(expected)} is not listed among the files as a sample"
        for name in sorted(needed - {entry["name"] for entry in sample["inputs"]}):
            yield f"{where}.inputs: the input {name!r} is missing"
    yield from (f"samples: {quote_path(path)} is there twice" for path in sorted(_repeated(used)))
    for path, kind in formats.items():
        if kind == "sample" and path not in used:
            yield f"files: no sample names {quote_path(path)}"


def _repeated(names: list[str]) -> set[str]:
    seen: set[str] = set()
    return {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
