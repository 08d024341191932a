"""Files of class labels, and the outputs that they belong to.

Triton's classification extension takes the largest elements of an output and looks their places up in a text file, one
label a line. It counts elements over all dims but the batch, so a label file fits an output of one score a class, and
the members of one that is batched: (N, C) elements, whose file names the member too.

Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md, and
AddLabels in https://github.com/triton-inference-server/core/blob/main/src/label_provider.cc
"""

from __future__ import annotations

from collections.abc import Sequence

from ensexport.emission import MEMBERS, OutputEmission, percent_of
from ensexport.errors import TritonError, UsageError
from ensexport.package.triton_tensors import Tensor

LABELS_FILE = "labels.txt"
MEMBER_LABELS_FILE = "labels_members.txt"
_SCORES = frozenset({"mean", "median", "min", "max", "probs", "logprobs", "vote"})


def label_files(
    labels: Sequence[str],
    outputs: Sequence[Tensor],
    emitted: Sequence[OutputEmission],
    *,
    n_members: int,
    is_batched: bool,
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return the files, and which output has which: file name -> bytes, name of an output in the file -> file name.

    Of several outputs of class scores those are labelled that have as many classes as there are labels.

    Args:
        labels: One a class, in order.
        outputs: Of the file.
        emitted: What each of the model's outputs became.
        n_members: N.
        is_batched: Does Triton batch?

    Raises:
        UsageError: A label is empty or has a line break.
        TritonError: No output holds class scores in a form that Triton can label, or none has that many classes.
    """
    for place, label in enumerate(labels):
        if not label.strip() or not label.isprintable():
            raise UsageError(f"label {place} is {label!r}: expected a text in one line.")
    dims = {tensor.name: tensor.dims(is_batched=is_batched) for tensor in outputs}
    classes = {
        file_name: (n_classes, name)
        for entry in emitted
        for name, file_name in zip(entry.names, entry.file_names, strict=True)
        if (n_classes := _classes(name, dims[file_name], n_members)) is not None
    }
    fitting = {file_name: name for file_name, (n_classes, name) in classes.items() if n_classes == len(labels)}
    if not classes:
        raise TritonError(
            f"cannot label an output: Triton labels one score a class, and the outputs are {_listed(outputs)}.",
            hint="Pack with --emit probs (or mean), where a member's output is (batch, classes).",
        )
    if not fitting:
        expected = " or ".join(f"{n_classes} (output '{name}')" for name, (n_classes, _) in classes.items())
        raise TritonError(
            f"cannot label an output: expected {expected} labels, got {len(labels)}.", hint="Give one label a class."
        )
    lines = {LABELS_FILE: labels}
    lines[MEMBER_LABELS_FILE] = [f"{label} (member {k})" for k in range(n_members) for label in labels]
    places = {file_name: MEMBER_LABELS_FILE if name == MEMBERS else LABELS_FILE for file_name, name in fitting.items()}
    used = sorted(set(places.values()))
    return {path: "".join(f"{line}\n" for line in lines[path]).encode() for path in used}, places


def _classes(name: str, dims: tuple[int, ...], n_members: int) -> int | None:
    """How many classes an output of the file holds a score of; None if Triton cannot label it."""
    if name == MEMBERS:
        return dims[1] if len(dims) == 2 and dims[0] == n_members and dims[1] > 0 else None
    is_scores = name in _SCORES or percent_of(name) is not None
    return dims[0] if is_scores and len(dims) == 1 and dims[0] > 0 else None


def _listed(outputs: Sequence[Tensor]) -> str:
    return ", ".join(f"'{tensor.name}' ({', '.join(map(str, tensor.shape))})" for tensor in outputs)
