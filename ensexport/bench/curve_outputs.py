"""The members' outputs on a file of inputs, from the artifact itself, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ensexport.bench.contents import Contents, with_members
from ensexport.compare import Array, is_exact
from ensexport.emission import OutputEmission
from ensexport.errors import ArtifactError, DataError, EnsexportError, UsageError
from ensexport.input_data import InputData
from ensexport.members.wording import quote_path

_VALUES = 4_000_000  # output values held at a time


@dataclass(frozen=True)
class Rows:
    """The members' outputs for some rows.

    Attributes:
        first: Number of the first of them.
        values: `(N, rows, ...)`.
    """

    first: int
    values: Array


class MemberOutputs:
    """One output of an artifact's members on all rows of a file.

    Args:
        artifact: The file.
        metadata: What it says of itself.
        data: The inputs.
        provider: `cpu`, `cuda` or `tensorrt`.
        output: The output's name; None for the first one with a class axis, else the first of floats.

    Attributes:
        entry: What the artifact says of that output.

    Raises:
        UsageError: There is no such output.
        EnsexportError: The artifact cannot be loaded.
    """

    entry: OutputEmission

    def __init__(
        self, artifact: Path, metadata: Mapping[str, Any], data: InputData, *, provider: str, output: str | None
    ) -> None:
        self._artifact, self._data, self._metadata = artifact, data, metadata
        self._contents = Contents.of(metadata)
        if output is not None and output not in self._contents.outputs:
            raise UsageError(
                f"{quote_path(artifact)} has no output '{output}' for --curve-output: expected one of "
                f"{', '.join(self._contents.outputs)}."
            )
        self._wanted = output
        self._run = with_members(
            {
                "path": str(artifact),
                "provider": provider,
                "hidden": self._contents.hidden,
                "outputs": metadata["outputs"],
                "n_members": metadata["n_members"],
                "needs_weights": self._contents.must_be_given_weights(artifact),
            }
        )

    def __iter__(self) -> Iterator[Rows]:
        """Yield all rows in order, as many at a time as memory allows.

        Raises:
            ArtifactError: The artifact fails on them.
            DataError: A member returns NaN.
            UsageError: The output has no rows, or is not of floats.
        """
        held: list[Array] = []
        first = 0
        for begin, feed in self._data.calls():
            held.append(self._called(begin, feed))
            if sum(array.size for array in held) + held[-1].size > _VALUES:
                yield Rows(first, np.concatenate(held, axis=1))
                first, held = begin + held[-1].shape[1], []
        if held:
            yield Rows(first, np.concatenate(held, axis=1))

    def _called(self, begin: int, feed: Mapping[str, Array]) -> Array:
        size = next(feed[name].shape[axis] for name, axis in self._data.axes.items() if axis is not None)
        try:
            outputs = self._contents.members_first(self._run(feed))
        except EnsexportError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise ArtifactError(
                f"{quote_path(self._artifact)} fails on rows {begin} to {begin + size - 1} of "
                f"{quote_path(self._data.path)}: {text}",
                hint="Are these inputs as the members take them: ids within the tables, sizes that were tried?",
            ) from error
        if begin == 0:
            self.entry = self._chosen(outputs)
        values = outputs[self.entry.output]
        n_members = self._metadata["n_members"]
        if values.ndim < 2 or values.shape[:2] != (n_members, size):
            raise UsageError(
                f"the output '{self.entry.output}' has no entry a row: expected ({n_members}, {size}, ...) for "
                f"{n_members} members and {size} rows, got {values.shape}.",
                hint="Choose another one with --curve-output.",
            )
        _refuse_nan(values, self.entry.output, begin, self._data.path)
        return values

    def _chosen(self, outputs: Mapping[str, Array]) -> OutputEmission:
        emitted = {entry.output: entry for entry in self._contents.emitted}
        floats = [entry for name, entry in emitted.items() if is_float(outputs[name])]
        if self._wanted is not None:
            floats = [entry for entry in floats if entry.output == self._wanted]
        if not floats:
            kinds = ", ".join(f"'{name}' of {outputs[name].dtype}" for name in emitted if self._wanted in (None, name))
            raise UsageError(
                f"cannot average {kinds}: expected an output of floats.", hint="Class scores are floats, not classes."
            )
        of_classes = [entry for entry in floats if n_classes(outputs[entry.output].shape[1:], entry) > 1]
        return (of_classes or floats)[0]


def is_float(array: Array) -> bool:
    """Floats, bfloat16 too, but not complex ones."""
    return not is_exact(array.dtype) and array.dtype.kind != "c"


def n_classes(shape: Sequence[int], entry: OutputEmission) -> int:
    """Size of the class axis of one member's output, 0 without one; the axis of the rows is none."""
    axis = entry.class_axis
    return shape[axis] if -len(shape) <= axis < len(shape) and axis % len(shape) else 0


def _refuse_nan(values: Array, output: str, begin: int, path: Path) -> None:
    bad = np.isnan(values)
    if bad.any():
        member, row = (int(place) for place in np.argwhere(bad)[0][:2])
        raise DataError(
            f"member {member} returns NaN in '{output}' for row {begin + row} of {quote_path(path)}: expected numbers.",
            hint="Leave that row out, or that member.",
        )
