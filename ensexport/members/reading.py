"""One checkpoint, be it a file or a folder -> its weights and what is known about them.

Loading (what is in the file), choosing (which of it are the weights) and taking them out of the file are three
steps; only the weights that were chosen are copied into memory, an optimizer's state never is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ensexport.members.checkpoint import Ledger, LoadedFile, load_file
from ensexport.members.containers import Origin, extract_state, read_origin, strip_prefix
from ensexport.members.deepspeed import refuse_partitioned
from ensexport.members.discovery import Source
from ensexport.members.facts import Facts, read_facts, read_folder_facts
from ensexport.members.folder_loading import load_folder
from ensexport.members.network_config import CONFIG_NAME, read_config
from ensexport.members.parts import cut_prefix
from ensexport.members.scalars import Scalar
from ensexport.members.selection import NO_SELECTION, Kind, Selection
from ensexport.members.tensors import check_plain
from ensexport.members.trust import NO_TRUST, Trust
from ensexport.members.wording import quote_path


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one checkpoint and where in it they lay.

    Attributes:
        state: Plain, dense, contiguous CPU tensors by name; tied weights are the same object.
        container_key: The key the state dict lay under; None if the file held nothing else.
        stripped_prefix: What was taken off every name; None if nothing was.
        sha256: Digest of the file's bytes; of several files, of the lines that `sha256sum` prints for them.
        format: `safetensors`, `torch-zip`, `torch-legacy` (before torch 1.6) and so on, see `LoadedFile`.
        size_bytes: Size of the file or files.
        origin: What the file says its network is; None if it says nothing.
        weights: `ema` or `raw` where the file holds both.
        others: Other keys that hold weights as well.
        left_out: Names that the user's `strip_prefix` leaves out.
        facts: Epoch, metrics and options that the file, or the folder, holds beside the weights.
        config: The `config.json` of the folder; None if there is none.
        file: What was loaded: tensors of `state` may lie in it, mapped into memory, until `take` copies them.
    """

    state: dict[str, torch.Tensor]
    container_key: str | None
    stripped_prefix: str | None
    sha256: str
    format: str
    size_bytes: int
    origin: Origin | None
    weights: Kind | None
    others: tuple[str, ...]
    left_out: tuple[str, ...]
    facts: Facts
    config: Mapping[str, Scalar] | None
    file: LoadedFile

    def take(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Give tensors of `state`, or views of them, memory of their own.

        Raises:
            CheckpointError: The file was written to, replaced or removed since it was opened.
        """
        return self.file.take(state)

    def without_values(self) -> Checkpoint:
        """The same without its tensors: what is known about it."""
        return replace(self, state={})


def read_checkpoint(
    source: Source | str | Path, *, selection: Selection = NO_SELECTION, trust: Trust = NO_TRUST
) -> Checkpoint:
    """Read the weights of one checkpoint into memory.

    Args:
        source: What `find_checkpoints` found, or a file.
        selection: Where in it the weights lie, as far as the user said so.
        trust: What may run code; by default nothing.

    Raises:
        EnsexportError: As `open_checkpoint`.
    """
    opened = open_checkpoint(source, selection=selection, trust=trust)
    return replace(opened, state=opened.take(opened.state))


def open_checkpoint(
    source: Source | str | Path,
    *,
    selection: Selection = NO_SELECTION,
    trust: Trust = NO_TRUST,
    ledger: Ledger | None = None,
) -> Checkpoint:
    """Find the weights of one checkpoint; where the format allows it, their values stay in the file.

    Args:
        source: What `find_checkpoints` found, or a file.
        selection: Where in it the weights lie, as far as the user said so.
        trust: What may run code; by default nothing.
        ledger: What is known of files that were read before; what is read now is added.

    Raises:
        CheckpointError: It cannot be read, see `load_file`; it holds no state dict, or a tensor that cannot be packed.
        UnsafeCheckpointError: It asks for code to be run, see `load_file`.
        StackError: No name begins with the prefix that the user named.
    """
    if not isinstance(source, Source):
        source = Source(Path(source), is_explicit=True)
    name = str(source.path)
    file = _load(source, trust, ledger)
    refuse_partitioned(file.content, name)
    found = extract_state(file.content, name, selection)
    check_plain(found.state, name, size_bytes=file.size_bytes)
    state = dict(found.state)
    left_out: list[str] = []
    if selection.strip_prefix is None:
        state, stripped = strip_prefix(state)
    else:
        stripped = selection.strip_prefix.removesuffix(".") + "."
        state, left_out = cut_prefix(quote_path(name), state, stripped)
    return Checkpoint(
        state=state,
        container_key=found.container_key,
        stripped_prefix=stripped,
        sha256=file.sha256,
        format=file.format,
        size_bytes=file.size_bytes,
        origin=read_origin(file.content),
        weights=found.weights,
        others=found.others,
        left_out=tuple(left_out),
        facts=read_facts(file.content) if source.folder is None else read_folder_facts(source.folder.source.parent),
        config=None if source.folder is None else _config(source.folder.source.parent),
        file=replace(file, content=None),
    )


def _load(source: Source, trust: Trust, ledger: Ledger | None) -> LoadedFile:
    if source.folder is None:
        return load_file(source.path, trust=trust, ledger=ledger)
    return load_folder(source.folder, trust=trust, ledger=ledger)


def _config(folder: Path) -> dict[str, Scalar] | None:
    path = folder / CONFIG_NAME
    return read_config(path) if path.is_file() else None
