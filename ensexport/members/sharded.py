"""A member cut into shards: its index says which file holds which tensor, and each file must agree.

The index is text from a stranger. It may name tensors and the files beside it, each file is read once by
`load_file`, and index and shards must say the same: a tensor too many is as suspect as one too few.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ensexport.errors import CheckpointError, IncompleteCheckpointError
from ensexport.members.checkpoint import Ledger, LoadedFile, load_file
from ensexport.members.file_sets import digest_of_files, neighbour
from ensexport.members.tensors import check_plain, same_bytes
from ensexport.members.trust import NO_TRUST, Trust
from ensexport.members.wording import join_some, quote_path

_MAX_INDEX_BYTES = 64 * 2**20
_HINT = "Download or save the member again, all its files together."


def load_sharded(index: Path, *, trust: Trust = NO_TRUST, ledger: Ledger | None = None) -> LoadedFile:
    """Read a member whose tensors lie in several files.

    Beside what is kept, one shard is in memory at a time.

    Args:
        index: `model.safetensors.index.json`, `pytorch_model.bin.index.json` or the like.
        trust: What may run code, as for `load_file`.
        ledger: As for `load_file`.

    Returns:
        The tensors by name, in the order of the index. The format is `sharded-safetensors` or `sharded-torch`,
        the digest that of `digest_of_files` over the index and its shards, the size their sum. Nothing is mapped
        from a file any more.

    Raises:
        IncompleteCheckpointError: A shard is missing, or lacks a tensor that the index places there.
        CheckpointError: The index is no regular file, too large or not of its form; it names a file elsewhere; a
            shard holds a tensor that the index does not know or another value of one that it places elsewhere;
            or see `load_file`.
        UnsafeCheckpointError: See `load_file`.

    Source: transformers 5.23.0 modeling_utils.py (`weight_map`), huggingface_hub 1.x serialization.
    """
    folder = index.parent
    raw, facts = _read_bounded(neighbour(folder, index.name, named_in=folder))
    weight_map = _parse_index(raw, index)
    digests, size_bytes = {index.name: hashlib.sha256(raw).hexdigest()}, len(raw)
    pool = _Pool(index, weight_map)
    for shard in sorted(set(weight_map.values())):
        loaded = load_file(neighbour(folder, shard, named_in=index), trust=trust, ledger=ledger)
        digests[shard] = loaded.sha256
        size_bytes += loaded.size_bytes
        pool.add(shard, loaded)
    kind = "sharded-safetensors" if ".safetensors.index" in index.name else "sharded-torch"
    content = {name: pool.kept[name] for name in weight_map}
    return LoadedFile(content, digest_of_files(digests), kind, size_bytes, str(index), facts)


@dataclass
class _Pool:
    """What the shards read so far have given."""

    index: Path
    weight_map: Mapping[str, str]
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    twins: dict[str, list[tuple[str, torch.Tensor]]] = field(default_factory=dict)

    def add(self, shard: str, loaded: LoadedFile) -> None:
        """Take from a shard what the index places there, and check the rest."""
        path = self.index.parent / shard
        by_index = f"which {quote_path(self.index)}"
        content = _tensors_only(loaded.content, path)
        check_plain(content, str(path), size_bytes=loaded.size_bytes)
        state = loaded.take(content)
        declared = [name for name, home in self.weight_map.items() if home == shard]
        missing = [repr(name) for name in declared if name not in state]
        if missing:
            raise IncompleteCheckpointError(
                f"the shard {quote_path(path)} lacks {join_some(missing)}, {by_index} places there.",
                hint=_HINT,
            )
        unknown = [repr(name) for name in state if name not in self.weight_map]
        if unknown:
            raise CheckpointError(
                f"the shard {quote_path(path)} holds {join_some(unknown)}, {by_index} does not name.",
                hint=_HINT,
            )
        self.kept |= {name: state[name] for name in declared}
        for name in state:
            if self.weight_map[name] != shard:
                self.twins.setdefault(name, []).append((shard, state[name]))
        self._compare_twins()

    def _compare_twins(self) -> None:
        """Refuse a tensor that lies in two shards with two values, as soon as both are read."""
        for name in [name for name in self.twins if name in self.kept]:
            for shard, tensor in self.twins.pop(name):
                if not same_bytes(tensor, self.kept[name]):
                    raise CheckpointError(
                        f"tensor {name!r} lies in two shards of {quote_path(self.index)} with two values: in "
                        f"{self.weight_map[name]!r}, where the index places it, and in {shard!r}.",
                        hint=_HINT,
                    )


def _tensors_only(content: object, path: Path) -> dict[str, torch.Tensor]:
    if not isinstance(content, dict):
        raise CheckpointError(
            f"the shard {quote_path(path)} is no state dict: expected tensors by name, got {type(content).__name__}.",
            hint=_HINT,
        )
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise CheckpointError(
                f"the shard {quote_path(path)} is no plain state dict: expected only tensors, found {name!r}, of type "
                f"{type(value).__name__}.",
                hint=_HINT,
            )
    return content


def _read_bounded(index: Path) -> tuple[bytes, os.stat_result]:
    try:
        facts = index.stat()
        if not stat.S_ISREG(facts.st_mode):  # asked before opening: a pipe would block for ever
            raise CheckpointError(f"cannot read {quote_path(index)}: it is not a regular file.", hint=_HINT)
        with index.open("rb") as file:
            raw = file.read(_MAX_INDEX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {quote_path(index)}: {error.strerror}.", hint="Check its permissions."
        ) from error
    if len(raw) > _MAX_INDEX_BYTES:
        raise CheckpointError(
            f"cannot read the index {quote_path(index)}: it has {facts.st_size} bytes, more than {_MAX_INDEX_BYTES}.",
            hint=_HINT,
        )
    return raw, facts


def _parse_index(raw: bytes, index: Path) -> dict[str, str]:
    """Return the `weight_map`: tensor name -> file name. That the names are plain is seen when they are followed."""
    try:
        loaded = json.loads(raw.decode(), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, or a name that stands twice
        raise _bad_index(index, f"it is no sound JSON ({str(error)[:200]})") from error
    weight_map = loaded.get("weight_map") if isinstance(loaded, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad_index(index, "expected an object with 'weight_map', tensor names with their files")
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise _bad_index(index, f"expected the name of a file for {name!r}, got {type(shard).__name__}")
    return weight_map


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands there twice")
        found[name] = value
    return found


def _bad_index(index: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"cannot read the index {quote_path(index)}: {problem}.", hint=_HINT)
