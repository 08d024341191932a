"""Is a package what its manifest says? Every file is hashed and looked at before anything in it is run.

All that is wrong is found, not only the first of it. Files are opened one folder at a time without following links, and
what is parsed is what was hashed. This does not say who made the package: the manifest is believed.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ensexport.errors import PackageError
from ensexport.members.wording import quote_path
from ensexport.package.external_data import external_data_problems
from ensexport.package.folder import Entry, Folder, Stamp, hash_file, read_file
from ensexport.package.manifest import MANIFEST, parse_manifest, read_manifest_bytes
from ensexport.package.model_facts import (
    UnreadableError,
    metadata_problems,
    onnx_problems,
    read_model,
    torch_metadata,
)
from ensexport.package.problems import Problem, package_error
from ensexport.package.samples import Array, read_tensor

_MOST_RENAMES = 100
_MOST_IN_MEMORY_BYTES = 2**31  # protobuf's own limit
_NO_LINKS = "a package holds no links"
Tell = Callable[[int, int], None]


@dataclass
class CheckedPackage:
    """A package whose files are what the manifest says.

    Attributes:
        path: The folder.
        manifest: What it says.
        manifest_sha256: Digest of `manifest.json`.
        arrays: The stored inputs and outputs by path.
        stamps: What each file was when it was hashed.
    """

    path: Path
    manifest: dict[str, Any]
    manifest_sha256: str
    arrays: dict[str, Array] = field(default_factory=dict)
    stamps: dict[str, Stamp] = field(default_factory=dict)

    def check_unchanged(self) -> None:
        """Find out whether the files are still those that were hashed.

        Raises:
            PackageError: One was written to or replaced since.
        """
        problems = []
        with Folder(self.path) as folder:
            for path, stamp in self.stamps.items():
                try:
                    descriptor = folder.open(path)
                except OSError as error:
                    problems.append(Problem(path, f"it was removed while it was verified ({error.strerror or error})"))
                    continue
                try:
                    if Stamp.of(descriptor) != stamp:
                        problems.append(Problem(path, "it was changed while it was verified"))
                finally:
                    os.close(descriptor)
        if problems:
            raise package_error(self.path, problems)


def check_package(path: str | Path, *, on_progress: Tell | None = None) -> CheckedPackage:
    """Check every file of a package against the manifest, and the models and samples against it too.

    Args:
        path: The folder.
        on_progress: Called as `(bytes hashed, bytes in all)`.

    Raises:
        PackageError: The manifest cannot be trusted, or something is not as it says; `problems` in the details lists
            all of it, each with its `path`.
    """
    content = read_manifest_bytes(path)
    package = CheckedPackage(Path(path), parse_manifest(content, path), hashlib.sha256(content).hexdigest())
    files = {entry["path"]: entry for entry in package.manifest["files"]}
    with Folder(path) as folder:
        entries = folder.walk()
        problems = [*_name_problems(files, entries), *_structure_problems(folder, files, entries)]
        regular = {entry.path for entry in entries if entry.kind == "a file"}
        checking = _Checking(folder, package, _teller(files, on_progress))
        for entry in package.manifest["files"]:
            if entry["path"] in regular:
                problems += checking.problems_of(entry)
    if problems:
        raise package_error(package.path, problems)
    return package


def _teller(files: Mapping[str, Any], on_progress: Tell | None) -> Callable[[int], None]:
    total, done = sum(entry["size_bytes"] for entry in files.values()), 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(min(done, total), total)

    return tell


def _name_problems(files: Mapping[str, Any], entries: Sequence[Entry]) -> Iterator[Problem]:
    """Names that are one and the same on other file systems: by case, or by Unicode's ways to write a letter."""
    for path in files:
        if not unicodedata.is_normalized("NFC", path):
            yield Problem(path, "expected its name in Unicode's normal form C, got another form")
    spellings: dict[str, set[str]] = {}
    for path in (*files, *(entry.path for entry in entries)):
        parts = path.split("/")
        for count in range(1, len(parts) + 1):
            prefix = "/".join(parts[:count])
            spellings.setdefault(_folded(prefix), set()).add(prefix)
    for same in spellings.values():
        first, *others = sorted(same)
        for other in others:
            yield Problem(other, f"its name differs from {quote_path(first)} by case or Unicode form alone")


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _structure_problems(folder: Folder, files: Mapping[str, Any], entries: Sequence[Entry]) -> Iterator[Problem]:
    folders = {path.rsplit("/", count)[0] for path in files for count in range(1, path.count("/") + 1)}
    there = {entry.path for entry in entries}
    extra: list[Entry] = []
    for entry in entries:
        path = entry.path
        expected = "a file" if path in files or path == MANIFEST else "a folder" if path in folders else None
        if entry.kind == "a symbolic link":
            yield Problem(path, f"expected {expected or 'nothing'}, got a symbolic link to {quote_path(entry.target)}: "
                                f"{_NO_LINKS}")  # fmt: skip
        elif expected is not None and entry.kind != expected:
            yield Problem(path, f"expected {expected}, got {entry.kind}")
        elif entry.problem:
            yield Problem(path, f"it cannot be read: {entry.problem}")
        elif entry.kind == "a file" and entry.links > 1:
            yield Problem(path, f"expected a file of one name, got a hard link ({entry.links} names): {_NO_LINKS}")
        elif expected is None and entry.kind != "a folder":
            extra.append(entry)
        elif expected is None and entry.is_empty:
            yield Problem(path, "an empty folder is there, and the manifest lists no file in it")
    missing = [path for path in files if path not in there]
    renamed = _renamed(folder, [files[path] for path in missing], extra)
    for path in missing:
        other = f": its bytes are in {quote_path(renamed[path])}" if path in renamed else ""
        yield Problem(path, f"it is missing{other}")
    for entry in extra:
        yield Problem(entry.path, f"{entry.kind} is there, and the manifest lists none")


def _renamed(folder: Folder, missing: Sequence[Mapping[str, Any]], extra: Sequence[Entry]) -> dict[str, str]:
    """Which missing files are there under another name."""
    found: dict[str, str] = {}
    sizes = {entry["size_bytes"] for entry in missing}
    for candidate in extra[:_MOST_RENAMES]:
        if candidate.kind != "a file" or candidate.size_bytes not in sizes:
            continue
        try:
            descriptor = folder.open(candidate.path)
        except OSError:
            continue  # it is reported as extra
        try:
            sha256 = hash_file(descriptor, lambda _: None)
        except OSError:
            continue
        finally:
            os.close(descriptor)
        found |= {entry["path"]: candidate.path for entry in missing if entry["sha256"] == sha256}
    return found


class _Checking:
    """Hashes and reads the files of one package."""

    def __init__(self, folder: Folder, package: CheckedPackage, tell: Callable[[int], None]) -> None:
        self._folder = folder
        self._package = package
        self._tell = tell
        self._sizes = {entry["path"]: entry["size_bytes"] for entry in package.manifest["files"]}
        self._samples = {
            entry["path"]: (kind, entry["name"], sample)
            for sample in package.manifest["samples"]
            for kind in ("inputs", "outputs")
            for entry in sample[kind]
        }

    def problems_of(self, entry: Mapping[str, Any]) -> Iterator[Problem]:
        """What is wrong with one file that is there."""
        path = entry["path"]
        try:
            descriptor = self._folder.open(path)
        except OSError as error:
            yield Problem(path, f"it cannot be read: {error.strerror or error}")
            return
        try:
            for what in self._problems(entry, descriptor):
                yield Problem(path, what)
        except OSError as error:
            yield Problem(path, f"it cannot be read: {error.strerror or error}")
        finally:
            os.close(descriptor)

    def _problems(self, entry: Mapping[str, Any], descriptor: int) -> Iterator[str]:
        path, kind = entry["path"], entry["format"]
        stamp = Stamp.of(descriptor)
        if stamp.size_bytes != entry["size_bytes"]:
            yield f"expected {entry['size_bytes']} bytes, got {stamp.size_bytes}"
            return
        content = b""
        if kind in ("onnx", "sample"):
            if stamp.size_bytes >= _MOST_IN_MEMORY_BYTES:
                yield f"expected less than {_MOST_IN_MEMORY_BYTES} bytes in one such file, got {stamp.size_bytes}"
                return
            content = read_file(descriptor, stamp.size_bytes)
            sha256 = hashlib.sha256(content).hexdigest()
            self._tell(len(content))
        else:
            sha256 = hash_file(descriptor, self._tell)
        if sha256 != entry["sha256"]:
            yield f"expected sha256 {entry['sha256']}, got {sha256}"
            return
        self._package.stamps[path] = stamp
        try:
            yield from self._inside(path, kind, descriptor, content)
        except UnreadableError as error:
            yield str(error)

    def _inside(self, path: str, kind: str, descriptor: int, content: bytes) -> Iterator[str]:
        manifest = self._package.manifest
        if kind == "onnx":
            model = read_model(content)
            del content
            data = f"{path}.data"
            name = data.rpartition("/")[2] if data in self._sizes else None
            yield from external_data_problems(model, name, self._sizes.get(data, 0))
            yield from onnx_problems(model, manifest)
        elif kind in ("torchscript", "pt2"):
            with os.fdopen(os.dup(descriptor), "rb") as file:
                yield from metadata_problems(torch_metadata(file), manifest)
        elif kind == "sample":
            yield from self._sample_problems(path, content)

    def _sample_problems(self, path: str, content: bytes) -> Iterator[str]:
        kind, name, _ = self._samples[path]
        expected = next(entry for entry in self._package.manifest[kind] if entry["name"] == name)
        try:
            stored, array = read_tensor(content, path)
        except PackageError as error:
            yield error.message.partition(": ")[2].rstrip(".")
            return
        if stored != name:
            yield f"expected the tensor {name!r}, got {stored!r}"
        if array.dtype.name != expected["dtype"]:
            yield f"expected dtype {expected['dtype']}, got {array.dtype.name}"
        fits = array.ndim == len(expected["shape"]) and all(
            size == dim for size, dim in zip(array.shape, expected["shape"], strict=True) if type(dim) is int
        )
        if not fits:
            yield f"expected shape {expected['shape']}, got {list(array.shape)}"
        self._package.arrays[path] = array
