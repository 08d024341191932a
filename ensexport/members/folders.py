"""Folders that are one member as a whole: what trainers write as several files, told by the names of the files.

Nothing is opened but DeepSpeed's `latest`, a line of text that names a folder. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from ensexport.errors import CheckpointError, IncompleteCheckpointError
from ensexport.members.file_sets import is_plain_name
from ensexport.members.wording import join_some, quote_path
from ensexport.spec import SkippedFile

Kind = Literal["hf", "sharded-safetensors", "sharded-torch", "dcp", "deepspeed"]

_AUXILIARY = {
    "optimizer.pt": "optimizer state, no weights",
    "optimizer*.bin": "optimizer state, no weights",
    "*_optim_states.pt": "optimizer state, no weights",
    "scheduler.pt": "learning-rate schedule, no weights",
    "scheduler*.bin": "learning-rate schedule, no weights",
    "scaler.pt": "state of the gradient scaler, no weights",
    "rng_state*.pth": "random number state, no weights",
    "random_states_*.pkl": "random number state, no weights",
    "sampler*.bin": "state of the data loader, no weights",
    "dl_state_dict*.bin": "state of the data loader, no weights",
    "custom_checkpoint_*.pkl": "state of the training script, no weights",
    "training_args.bin": "training options, no weights",
    "trainer_state.json": "training log, no weights",
}
"""What the transformers Trainer, accelerate and DeepSpeed write beside the weights.

Source: transformers 5.23.0 trainer.py, accelerate 1.15.0 utils/constants.py and checkpointing.py, DeepSpeed
runtime/engine.py.
"""
_FULL_SAFE, _FULL_TORCH = "model.safetensors", "pytorch_model.bin"
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.(safetensors|bin)")
_WEIGHT_SUFFIXES = (".pt", ".pth", ".ckpt", ".tar", ".bin", ".safetensors")
_FSDP_MODEL = re.compile(r"pytorch_model_fsdp_\d+")
_FSDP_OPTIMIZER = re.compile(r"optimizer(_\d+)?")
_MAX_LATEST_BYTES = 256


@dataclass(frozen=True)
class MemberFolder:
    """A folder that holds one member.

    Attributes:
        kind: How it was written, and so which reader it needs.
        source: What the reader takes: the file with the weights, the index of the shards, or (`dcp`) the folder.
        files: The files that make the member, by their names; the index has the last word on shards.
        skipped: All else in the folder, and why it is no part of the member.
    """

    kind: Kind
    source: Path
    files: tuple[Path, ...]
    skipped: tuple[SkippedFile, ...]


def member_folder(folder: Path) -> MemberFolder | None:
    """Say whether a folder is one member as a whole; None if it is not, a folder of checkpoint files say.

    Several forms in one folder: full weights before shards, safetensors before pickles (as transformers chooses),
    these before DCP and DeepSpeed, which hold the optimizer too.

    Raises:
        IncompleteCheckpointError: It holds an adapter without its base model, weights that DeepSpeed split over
            several files, shards without their index, or DCP files without their table.
        CheckpointError: It cannot be listed, or holds several members and nothing says which is meant.
    """
    listing = _Listing(folder)
    for find in (_full_weights, _sharded_weights, _merged_weights, _dcp, _deepspeed):
        found = find(listing)
        if found is not None:
            return found
    _refuse_adapter(listing)
    _refuse_loose_shards(listing)
    return None


def auxiliary_reason(name: str) -> str:
    """Say why a file of this name holds no weights; empty if it may. Such files are never members."""
    return next((reason for pattern, reason in _AUXILIARY.items() if fnmatchcase(name, pattern)), "")


_Reasons = Callable[[str], str]


def _no_reasons(name: str) -> str:
    """For folders that hold nothing out of the ordinary."""
    return ""


class _Listing:
    """The names in one folder, files and sub-folders apart.

    Raises:
        CheckpointError: The folder cannot be listed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            entries = sorted(folder.iterdir(), key=lambda path: path.name)
            self.files = [path.name for path in entries if path.is_file()]
            self.folders = [path.name for path in entries if path.is_dir()]
            self.others = [path.name for path in entries if not (path.is_file() or path.is_dir())]
        except OSError as error:
            raise CheckpointError(
                f"cannot list the folder {quote_path(folder)}: {error.strerror}.", hint="Check its permissions."
            ) from error

    def matching(self, pattern: str) -> list[str]:
        return [name for name in self.files if fnmatchcase(name, pattern)]

    def paths(self, names: Sequence[str]) -> tuple[Path, ...]:
        return tuple(self.folder / name for name in names)

    def taken(self, kind: Kind, source: Path, names: Sequence[str], reasons: _Reasons = _no_reasons) -> MemberFolder:
        """Build the answer: these files are taken, all others are skipped.

        Args:
            kind: How the member was written.
            source: What its reader takes.
            names: The files that make it.
            reasons: Name of another entry -> why it is skipped; empty for the usual reasons.
        """
        return MemberFolder(kind, source, self.paths(names), self._skipped(source, names, reasons))

    def around(self, inner: MemberFolder, name: str, reasons: _Reasons = _no_reasons) -> MemberFolder:
        """Build the answer for a member that lies in the sub-folder `name`."""
        skipped = self._skipped(inner.source, [name], reasons) + inner.skipped
        return MemberFolder(inner.kind, inner.source, inner.files, skipped)

    def _skipped(self, source: Path, taken: Sequence[str], reasons: _Reasons) -> tuple[SkippedFile, ...]:
        return tuple(
            SkippedFile(str(self.folder / name), reasons(name) or auxiliary_reason(name) or self._usual(name, source))
            for name in self.files + self.folders + self.others
            if name not in taken
        )

    def _usual(self, name: str, source: Path) -> str:
        if name in self.folders:
            return "sub-folder of a folder that is one member: name it to take what it holds"
        if name in self.others:
            return "not a regular file"
        if name.startswith("adapter_"):
            return f"an adapter: the member's weights are {quote_path(source.name)}"
        if name.lower().endswith(_WEIGHT_SUFFIXES):
            return f"another form of weights: the member's are {quote_path(source.name)}"
        return "no weights"


# -- one file, as transformers, timm and accelerate write it ---------------------------------------


def _full_weights(listing: _Listing) -> MemberFolder | None:
    name = next((name for name in (_FULL_SAFE, _FULL_TORCH) if name in listing.files), None)
    if name is None:
        return None
    if "config.json" not in listing.files and (not _looks_like_a_trainers(listing, name) or _has_others(listing)):
        return None
    return listing.taken("hf", listing.folder / name, [name])


def _merged_weights(listing: _Listing) -> MemberFolder | None:
    """What `zero_to_fp32.py . pytorch_model.bin` writes: a file of old, in newer versions a folder of that name.

    Source: DeepSpeed utils/zero_to_fp32.py at c60c779 (convert_zero_checkpoint_to_fp32_state_dict).
    """
    if _FULL_TORCH not in listing.folders:
        return None
    inner = _Listing(listing.folder / _FULL_TORCH)
    found = _full_weights(inner) or _sharded_weights(inner)
    return found and listing.around(found, _FULL_TORCH)


def _looks_like_a_trainers(listing: _Listing, name: str) -> bool:
    """True if the file's name, or one beside it, is one that only trainers give."""
    return name == _FULL_TORCH or any(auxiliary_reason(other) for other in listing.files)


def _has_others(listing: _Listing) -> bool:
    """True if checkpoints of other names lie beside: then the folder is a flat one of several members."""
    return any(
        name.lower().endswith(_WEIGHT_SUFFIXES)
        and name not in (_FULL_SAFE, _FULL_TORCH)
        and not (name.startswith("adapter_") or _SHARD.fullmatch(name) or auxiliary_reason(name))
        for name in listing.files
    )


# -- shards with an index --------------------------------------------------------------------------


def _sharded_weights(listing: _Listing) -> MemberFolder | None:
    forms: tuple[tuple[Kind, str, str], ...] = (
        ("sharded-safetensors", "*.safetensors.index*.json", f"{_FULL_SAFE}.index.json"),
        ("sharded-torch", "pytorch_model.bin.index*.json", f"{_FULL_TORCH}.index.json"),
    )
    for kind, pattern, usual in forms:
        indexes = listing.matching(pattern)
        if not indexes:
            continue
        index = usual if usual in indexes else indexes[0]
        if index != usual and len(indexes) > 1:
            raise CheckpointError(
                f"the folder {quote_path(listing.folder)} holds {len(indexes)} sets of shards: {join_some(indexes)}.",
                hint="Put each into a folder of its own.",
            )
        stem = index.partition(".")[0]
        suffix = "safetensors" if kind == "sharded-safetensors" else "bin"
        shards = [name for name in listing.files if (m := _SHARD.fullmatch(name)) and m.groups() == (stem, suffix)]
        return listing.taken(kind, listing.folder / index, [index, *shards])
    return None


def _refuse_loose_shards(listing: _Listing) -> None:
    shards = [name for name in listing.files if _SHARD.fullmatch(name)]
    if shards:
        raise IncompleteCheckpointError(
            f"the folder {quote_path(listing.folder)} holds shards of one model ({join_some(shards)}) without their "
            "index: expected a file that ends in .index.json.",
            hint="Copy or download the index too.",
        )


# -- torch.distributed.checkpoint ------------------------------------------------------------------


def _dcp(listing: _Listing) -> MemberFolder | None:
    """A folder that `torch.distributed.checkpoint` wrote, or one of accelerate that holds such a folder."""
    models = [name for name in listing.folders if _FSDP_MODEL.fullmatch(name)]
    if len(models) > 1:
        raise CheckpointError(
            f"the folder {quote_path(listing.folder)} holds {len(models)} models: {join_some(models)}.",
            hint="Name the folder of the one that is meant.",
        )
    if models:
        inner = _dcp_files(_Listing(listing.folder / models[0]))
        return inner and listing.around(inner, models[0], _accelerate_reason)
    return _dcp_files(listing)


def _dcp_files(listing: _Listing) -> MemberFolder | None:
    data = listing.matching("*.distcp")
    if not data or _FSDP_OPTIMIZER.fullmatch(listing.folder.name):
        return None  # accelerate's optimizer_0 has the same form
    if ".metadata" not in listing.files:
        raise IncompleteCheckpointError(
            f"the folder {quote_path(listing.folder)} holds parts of a distributed checkpoint ({join_some(data)}) "
            "without their table: expected a file '.metadata'.",
            hint="Copy it too (its name starts with a dot), or wait until the training run has finished writing.",
        )
    return listing.taken("dcp", listing.folder, [".metadata", *data], _lightning_reason)


def _lightning_reason(name: str) -> str:
    return "the trainer's state, no weights" if name == "meta.pt" else ""


def _accelerate_reason(name: str) -> str:
    return "optimizer state, no weights" if _FSDP_OPTIMIZER.fullmatch(name) else ""


# -- DeepSpeed -------------------------------------------------------------------------------------


def _deepspeed(listing: _Listing) -> MemberFolder | None:
    """A step's folder, or the folder above it with its `latest`.

    Source: DeepSpeed runtime/engine.py (_get_ckpt_name, _get_zero_ckpt_prefix) and runtime/pipe/module.py.
    """
    if listing.matching("*model_states.pt"):
        return _step(listing)
    steps = _steps(listing)
    latest = _read_latest(listing.folder) if "latest" in listing.files else None
    if len(steps) > 1 and latest not in steps:
        raise CheckpointError(
            f"the folder {quote_path(listing.folder)} holds {len(steps)} steps of one run ({join_some(list(steps))}) "
            "and no file 'latest' that names one of them.",
            hint="Name the folder of the step that is meant.",
        )
    if not steps:
        return None
    name = latest if latest in steps else next(iter(steps))
    reasons = dict.fromkeys(steps, "another step of the same run") | {"latest": "names the step, no weights"}
    return listing.around(_step(steps[name]), name, lambda other: reasons.get(other, ""))


def _steps(listing: _Listing) -> dict[str, _Listing]:
    """The sub-folders that hold a step: `global_step500`, Lightning's `checkpoint`, accelerate's `pytorch_model`."""
    if "latest" not in listing.files and not any(name.startswith("global_step") for name in listing.folders):
        return {}
    inner = {name: _Listing(listing.folder / name) for name in listing.folders}
    return {name: found for name, found in inner.items() if found.matching("*model_states.pt")}


def _read_latest(folder: Path) -> str | None:
    try:
        with (folder / "latest").open("rb") as file:
            name = file.read(_MAX_LATEST_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if is_plain_name(name) else None


def _step(listing: _Listing) -> MemberFolder:
    """The one file of a step that holds all weights."""
    states = listing.matching("*model_states.pt")
    _refuse_split_states(listing.folder, states)
    return listing.taken("deepspeed", listing.folder / states[0], states)


def _refuse_split_states(folder: Path, states: Sequence[str]) -> None:
    of_run = f"the DeepSpeed checkpoint {quote_path(folder)}"
    if any(name.startswith("zero_pp_rank_") for name in states):
        raise IncompleteCheckpointError(
            f"{of_run} holds no whole weights: ZeRO-3 split them over {join_some(states)}.", hint=ZERO3_HINT
        )
    if any(name.startswith("layer_") for name in states):
        raise IncompleteCheckpointError(
            f"{of_run} is split by layers (pipeline parallelism or experts): {join_some(states)}.",
            hint="Write the whole model into one file with the tool it was trained with.",
        )
    if len(states) != 1:
        raise IncompleteCheckpointError(
            f"{of_run} is split over {len(states)} model-parallel ranks: {join_some(states)}; expected one file.",
            hint="Write the whole model into one file with the tool it was trained with.",
        )


ZERO3_HINT = (
    "Run 'python zero_to_fp32.py . pytorch_model.bin' in the folder above first; DeepSpeed put the script there."
)
"""What to do about weights that ZeRO-3 split; the script is part of every DeepSpeed checkpoint."""


# -- adapters --------------------------------------------------------------------------------------


def _refuse_adapter(listing: _Listing) -> None:
    names = [*listing.matching("adapter_config.json"), *listing.matching("adapter_model.*")]
    if names:
        raise IncompleteCheckpointError(
            f"the folder {quote_path(listing.folder)} holds an adapter ({join_some(names)}), not a whole model.",
            hint="Merge it into its base model first: with peft, model.merge_and_unload().save_pretrained(FOLDER).",
        )
