"""What a checkpoint says beside its weights: how far it was trained, how well it did, with which options.

Facts are shown and compared, never obeyed: no value here chooses code, an architecture or a file. Whatever the
content is, reading it raises nothing and returns a bounded amount of plain data.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ensexport.errors import CheckpointError
from ensexport.members.json_files import read_json_object
from ensexport.members.scalars import NotPlainError, Scalar, entries, flatten, plain_scalar

TRAINER_STATE = "trainer_state.json"
OPTION_HOLDERS = (
    "hyper_parameters",  # Lightning
    "datamodule_hyper_parameters",
    "hparams",
    "args",  # timm, torchvision references, argparse in general
    "init_args",  # nnU-Net v2
    "train_args",  # ultralytics
    "meta",  # mmengine
    "config",
    "cfg",
    "opt",
    "options",
    "model_args",
    "model_kwargs",
    "model_config",
)
"""Keys beside the weights under which trainers save their options."""

_EPOCHS = ("epoch", "current_epoch")
_STEPS = ("global_step", "step", "iteration", "iter", "global_steps", "num_updates")
_METRIC_HOLDERS = ("metrics", "best_metrics", "val_metrics", "train_metrics")
_METRIC = re.compile(
    r"(.*_)?(metric|loss|acc|acc1|acc5|accuracy|score|fitness|auc|auroc|f1|dice|iou|map|mae|mse|rmse|r2)|_best_ema",
    re.IGNORECASE,
)
_MAX_ENTRIES = 2000
_MAX_DEPTH = 8
_MAX_TOP = 20_000
"""A bare state dict of as many tensors is looked through."""
_MAX_METRICS = 50
_MAX_TRAINER_STATE_BYTES = 64 * 2**20
"""The log of a long run with a line a step; a usual one has some ten thousand bytes."""


@dataclass(frozen=True)
class Facts:
    """What is said beside the weights; None and empty where nothing is.

    Attributes:
        epoch: As the trainer counts it: some from 0, some from 1, some in fractions.
        step: Updates of the weights.
        metrics: The numbers it kept the checkpoint for, by name. They may be NaN.
        hyper_parameters: Options of the run, flat: `hyper_parameters.width`, `args.model`, `init_args.fold`.
    """

    epoch: float | None = None
    step: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    hyper_parameters: Mapping[str, Scalar] = field(default_factory=dict)


def read_facts(content: object) -> Facts:
    """Return what a checkpoint file says beside the weights.

    Args:
        content: What the file held. Anything else than a dict says nothing.

    Source: timm 1.0.31 utils/checkpoint_saver.py (`epoch`, `metric`, `args`); lightning 2.5
    callbacks/model_checkpoint.py `state_dict` (`monitor`, `best_model_score`); nnU-Net v2 nnUNetTrainer.py
    `save_checkpoint` (`current_epoch`, `_best_ema`, `init_args`); ultralytics 8.3 engine/trainer.py `save_model`
    (`best_fitness`, `train_metrics`, `train_args`; `epoch` is -1 in a finished file); mmengine 0.10
    runner/runner.py `save_checkpoint` (`meta.epoch`, `meta.iter`, `meta.seed`).
    """
    if not issubclass(type(content), dict):
        return Facts()
    top = dict(itertools.islice(entries(content), _MAX_TOP))
    metrics = dict(itertools.islice(_metrics(top), _MAX_METRICS))
    options: dict[str, Scalar] = {}
    counters = (*_EPOCHS, *_STEPS)
    for name, value in top.items():
        if name in OPTION_HOLDERS:
            options |= flatten(value, name, max_entries=_MAX_ENTRIES, max_depth=_MAX_DEPTH)
        elif name not in counters and name not in metrics and not issubclass(type(value), torch.Tensor):
            options |= flatten(value, name, max_entries=0, max_depth=0)
    meta = dict(itertools.islice(entries(top.get("meta")), _MAX_TOP))
    return Facts(
        epoch=_counter(top, _EPOCHS, meta),
        step=_counter(top, _STEPS, meta),
        metrics=metrics,
        hyper_parameters=dict(itertools.islice(options.items(), _MAX_ENTRIES)),
    )


def read_folder_facts(folder: str | Path) -> Facts:
    """Return what the Trainer of transformers left in a member's folder; nothing if it left nothing readable.

    Args:
        folder: A member's folder; its `trainer_state.json` is read as data.

    Source: transformers 4.57 trainer_callback.py, `TrainerState`.
    """
    try:
        state = read_json_object(Path(folder) / TRAINER_STATE, max_bytes=_MAX_TRAINER_STATE_BYTES)
    except CheckpointError:
        return Facts()
    best = _number(state.get("best_metric"))
    return Facts(
        epoch=_counter(state, ("epoch",), {}),
        step=_counter(state, ("global_step",), {}),
        metrics={} if best is None else {"best_metric": best},
    )


def _metrics(top: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """Yield name and value of each number that tells how good the member is."""
    for name, value in top.items():
        number = _number(value) if _METRIC.fullmatch(name) else None
        if number is not None:
            yield name, number
    for holder in _METRIC_HOLDERS:
        for name, value in flatten(top.get(holder), holder, max_entries=_MAX_METRICS, max_depth=2).items():
            number = _number(value)
            if number is not None:
                yield name, number
    for _, callback in itertools.islice(entries(top.get("callbacks")), _MAX_METRICS):
        state = dict(itertools.islice(entries(callback), _MAX_METRICS))
        number, monitor = _number(state.get("best_model_score")), state.get("monitor")
        if number is not None:
            yield monitor[:80] if type(monitor) is str else "best_model_score", number


def _counter(top: Mapping[str, object], names: tuple[str, ...], meta: Mapping[str, object]) -> float | None:
    """The first of the names that holds a number of 0 or more."""
    for holder in (top, meta):
        for name in names:
            number = _number(holder.get(name))
            if number is not None and 0 <= number < math.inf:
                return int(number) if number == int(number) else number
    return None


def _number(value: object) -> float | None:
    try:
        plain = plain_scalar(value)
    except NotPlainError:
        return None
    return plain if isinstance(plain, int | float) and not isinstance(plain, bool) else None
