"""How many members do you need? Quality and time of subsets of each size, on data of the user's own.

Quality is averaged over random subsets of a size, so that a lucky choice of members does not pass for a size; time is
that of the first so many members, packed as a file of their own, since an average over subsets would cost an export
each and all members take the same time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensexport.bench.contents import Contents
from ensexport.bench.curve_measures import MEASURES, ClassMeasures, Measures, ValueMeasures, means_of
from ensexport.bench.curve_outputs import MemberOutputs, n_classes
from ensexport.bench.names import check_members
from ensexport.bench.report import BenchReport
from ensexport.clock import OnStage
from ensexport.compare import Array
from ensexport.emission import OutputEmission
from ensexport.errors import DataError
from ensexport.input_data import InputData, read_data
from ensexport.members.wording import quote_path
from ensexport.runtime import read_metadata

N_SUBSETS = 20
_SEED = 0


@dataclass(frozen=True)
class CurvePoint:
    """All subsets of one size.

    Attributes:
        k: How many members each has.
        n_subsets: How many were measured.
        measures: Measure -> `mean`, `min` and `max` over them.
    """

    k: int
    n_subsets: int
    measures: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class MembersCurve:
    """What subsets of the members are worth.

    Attributes:
        path: The file of inputs and labels.
        output: Which output was averaged.
        kind: `classes` or `values`.
        n_rows: Rows of data.
        has_labels: Were there labels?
        points: One a size.
        warnings: What the user should know of the data.
    """

    path: str
    output: str
    kind: str
    n_rows: int
    has_labels: bool
    points: tuple[CurvePoint, ...]
    warnings: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of members."""
        return tuple(point.k for point in self.points)

    def to_dict(self, report: BenchReport) -> dict[str, Any]:
        """Return the JSON form.

        Args:
            report: The times, measured with `n_members=curve.sizes` at one batch size.
        """
        times = {(row.n_members, row.timing.alternative): row.timing.median_ms for row in report.rows}
        return {
            "members_curve": [
                {
                    "k": point.k,
                    "subsets": point.n_subsets,
                    **{name: point.measures.get(name) for name in MEASURES},
                    "latency_ms": times.get((point.k, "packed")),
                    "loop_ms": times.get((point.k, "loop")),
                }
                for point in self.points
            ],
            "curve_data": {
                "path": self.path,
                "rows": self.n_rows,
                "output": self.output,
                "kind": self.kind,
                "has_labels": self.has_labels,
                "batch": next((row.batch for row in report.rows), None),
            },
        }


def measure_curve(
    artifact: str | Path,
    data: str | Path,
    *,
    sizes: Sequence[int] | None = None,
    output: str | None = None,
    provider: str = "cpu",
    n_subsets: int = N_SUBSETS,
    seed: int = _SEED,
    on_stage: OnStage | None = None,
) -> MembersCurve:
    """Measure what subsets of an artifact's members are worth.

    Labels of integers, or an output with a class axis and no labels, are about classes; labels of floats about values.

    Args:
        artifact: An `.onnx`, `.ts` or `.pt2` file that ensexport wrote; it may return combined outputs only.
        data: An `.npz` of inputs and perhaps labels, see `read_data`.
        sizes: Numbers of members; by default 1 to N.
        output: Which output; by default the first one with a class axis, else the first of floats.
        provider: `cpu`, `cuda` or `tensorrt`.
        n_subsets: How many random subsets of a size; all where there are fewer.
        seed: Which ones.
        on_stage: Called as `(stage, done, total)`.

    Raises:
        UsageError: A size or an output that there is not.
        DataError: The data cannot be read or does not fit.
        ArtifactError: The artifact cannot be read or run.
        OutputError: There are labels, and torchmetrics is not installed.
    """
    tell = on_stage or (lambda stage, done, total: None)
    path = Path(artifact)
    metadata = read_metadata(path)
    n_members = metadata["n_members"]
    wanted = tuple(sorted(set(sizes or range(1, n_members + 1))))
    check_members(wanted, n_members)
    rows = read_data(data, metadata)
    tell("curve", 0, rows.n_rows)
    outputs = MemberOutputs(path, metadata, rows, provider=provider, output=output)
    subsets = {k: choose_subsets(n_members, k, n_subsets, seed=seed) for k in wanted}
    kept: dict[tuple[int, ...], Measures] = {}
    task: _Task | None = None
    for part in outputs:
        if task is None:
            task = _Task.of(part.values, outputs.entry, rows)
            kept = {subset: task.measures() for chosen in subsets.values() for subset in chosen}
        task.take(part.values, part.first, kept)
        tell("curve", part.first + part.values.shape[1], rows.n_rows)
    assert task is not None
    points = tuple(
        CurvePoint(k, len(chosen), means_of([kept[subset].result() for subset in chosen]))
        for k, chosen in subsets.items()
    )
    return MembersCurve(
        str(data), outputs.entry.output, task.kind, rows.n_rows, rows.labels is not None, points,
        tuple(_warnings(rows, Contents.of(metadata))),
    )  # fmt: skip


def choose_subsets(n_members: int, k: int, n_subsets: int, *, seed: int = _SEED) -> list[tuple[int, ...]]:
    """Choose subsets of k members: all there are, or `n_subsets` random ones, no two alike."""
    if math.comb(n_members, k) <= n_subsets:
        return list(itertools.combinations(range(n_members), k))
    random = np.random.default_rng([seed, k])
    found: dict[tuple[int, ...], None] = {}
    while len(found) < n_subsets:
        found[tuple(sorted(int(index) for index in random.choice(n_members, k, replace=False)))] = None
    return list(found)


def _warnings(data: InputData, contents: Contents) -> list[str]:
    found = [f"{quote_path(data.path)}: the array {name!r} is neither an input nor the labels" for name in data.unused]
    if contents.weights is not None and len(set(contents.weights.values or ())) > 1:
        found.append("the members curve counts all members alike, not by the weights that the file holds")
    return found


@dataclass(frozen=True)
class _Task:
    """What is measured.

    Attributes:
        kind: `classes` or `values`.
        class_axis: Of one member's output.
        n_classes: 0 for values.
        labels: Of all rows.
    """

    kind: str
    class_axis: int
    n_classes: int
    labels: Array | None

    @classmethod
    def of(cls, values: Array, entry: OutputEmission, data: InputData) -> _Task:
        """Decide, by the labels and the first rows `(N, rows, ...)`.

        Raises:
            DataError: The labels fit neither.
        """
        shape, labels, file = values.shape[2:], data.labels, quote_path(data.path)
        found = n_classes(values.shape[1:], entry)
        axis = entry.class_axis % (values.ndim - 1)
        if labels is None:
            return cls("classes" if found > 1 else "values", axis, found, None)
        is_classes = labels.dtype.kind in "iu"
        without = [size for place, size in enumerate(shape, start=1) if place != axis]
        expected = tuple(without if is_classes else shape)
        if is_classes and found < 2:
            raise DataError(
                f"the labels of {file} are integers, and the output '{entry.output}' has no classes: expected "
                f"floats of shape {(data.n_rows, *shape)}, got {labels.dtype}.",
                hint="Save values as floats; --curve-output chooses another output.",
            )
        if labels.shape[1:] != expected:
            raise DataError(
                f"the labels of {file} do not fit the output '{entry.output}': expected the shape "
                f"{(data.n_rows, *expected)} for {labels.dtype}, got {labels.shape}.",
                hint="Labels are integers, one class a row, or floats of the output's shape.",
            )
        numbers = labels.astype(np.int64)
        wrong = numbers[(numbers < 0) | (numbers >= found)] if is_classes else numbers[:0]
        if wrong.size:
            raise DataError(
                f"the labels of {file} hold {wrong.flat[0]}: expected classes from 0 to {found - 1}, of the "
                f"output '{entry.output}'.",
                hint="Number the classes as in training; leave rows without a label out.",
            )
        return cls("classes" if is_classes else "values", axis, found, labels)

    def measures(self) -> Measures:
        """Begin to measure one subset."""
        has_labels = self.labels is not None
        if self.kind == "classes":
            return ClassMeasures(self.n_classes, has_labels=has_labels)
        return ValueMeasures(has_labels=has_labels)

    def take(self, values: Array, first: int, kept: Mapping[tuple[int, ...], Measures]) -> None:
        """Measure some rows `(N, rows, ...)`, the first of which has that number."""
        members = torch.from_numpy(values.astype(np.float64))
        labels = None if self.labels is None else self.labels[first : first + values.shape[1]]
        if self.kind == "classes":
            members = members.movedim(self.class_axis + 1, -1).flatten(1, -2).log_softmax(-1)
            truth = None if labels is None else torch.from_numpy(labels.astype(np.int64)).flatten()
        else:
            truth = None if labels is None else torch.from_numpy(labels.astype(np.float64))
        everyone = self._averaged(members)
        for subset, measures in kept.items():
            measures.update(self._averaged(members[list(subset)]), everyone, truth)

    def _averaged(self, members: Tensor) -> Tensor:
        if self.kind == "values":
            return members.mean(0)
        return members.logsumexp(0) - math.log(len(members))
