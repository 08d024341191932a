"""Inputs, and perhaps labels, of the user's own: one `.npz`, checked against what the artifact takes, cut into calls.

For `bench --members-curve` and `pack --sample-inputs`.

Nothing is converted: an array of another dtype is a sign of another preprocessing than the members were trained with.
"""

from __future__ import annotations

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ensexport.compare import Array
from ensexport.errors import DataError
from ensexport.members.wording import quote_path
from ensexport.runtime import member_specs
from ensexport.spec import TensorSpec, batch_dim, parse_inputs

LABELS = ("labels", "y")
_ROWS = 64  # a call at most: activations are many times the size of the inputs
_VALUES = 4_000_000  # input values a call, counted once a member
# What NumPy and zipfile raise on damaged, encrypted or pickled files.
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, SyntaxError, TypeError, RuntimeError, OverflowError,
               zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error)  # fmt: skip
_SAVED_AS = {"bfloat16": "float32"}  # NumPy cannot save bfloat16


@dataclass(frozen=True)
class InputData:
    """Inputs that fit an artifact, and labels.

    Attributes:
        path: The file, as the user gave it.
        inputs: Input -> all of its rows, in the order of the artifact's inputs.
        labels: `(rows, ...)`, integers or floats; None without.
        n_rows: How many rows there are.
        axes: Input -> the axis of its array that holds the rows; None for one without.
        sizes: How many rows each call takes, in order.
        batch: The dim that counts rows: its name, or a fixed size.
        unused: Names of arrays that are neither inputs nor labels.
    """

    path: Path
    inputs: Mapping[str, Array]
    labels: Array | None
    n_rows: int
    axes: Mapping[str, int | None]
    sizes: tuple[int, ...]
    batch: int | str
    unused: tuple[str, ...] = ()

    def first(self, rows: int) -> dict[str, Array]:
        """The inputs of the first call, cut to so many rows where the artifact takes fewer than a call has."""
        _, inputs = next(self.calls())
        if isinstance(self.batch, int):
            return inputs
        return {
            name: array
            if self.axes[name] is None
            else array.take(range(min(rows, self.sizes[0])), axis=self.axes[name])
            for name, array in inputs.items()
        }

    def calls(self) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yield the first row and the inputs of each call."""
        begin = 0
        for size in self.sizes:
            rows = range(begin, begin + size)
            yield (
                begin,
                {
                    name: array if self.axes[name] is None else array.take(rows, axis=self.axes[name])
                    for name, array in self.inputs.items()
                },
            )
            begin += size


def read_data(path: str | Path, metadata: Mapping[str, Any]) -> InputData:
    """Read inputs and labels and check them against an artifact.

    Args:
        path: An `.npz` with one array an input, under the input's name (with one input any name will do), and perhaps
            `labels` (or `y`): one entry a row. A per-member input has a leading N.
        metadata: What the artifact says of its inputs.

    Raises:
        DataError: The file cannot be read or does not fit; names the array, what was expected and what came.
    """
    path = Path(path)
    arrays = _read(path)
    specs = parse_inputs(metadata["inputs"])
    names = _names(path, list(arrays), specs)
    fit = _Fit(path, metadata, specs)
    inputs = {spec.name: fit.checked(spec, names[spec.name], arrays[names[spec.name]]) for spec in specs}
    n_rows = fit.rows
    labels_name = _labels_name(arrays, specs)
    labels = None if labels_name is None else _labels(path, labels_name, arrays[labels_name], n_rows)
    used = {*names.values(), labels_name}
    return InputData(
        path,
        inputs,
        labels,
        n_rows,
        fit.axes,
        fit.call_sizes(),
        fit.batch,
        tuple(name for name in arrays if name not in used),
    )


def check_exists(path: str | Path) -> None:
    """Refuse a file that is not there, before the work.

    Raises:
        DataError: It is not there.
    """
    if not Path(path).is_file():
        raise DataError(f"cannot read {quote_path(Path(path))}: there is no such file.", hint="Check the path.")


def _read(path: Path) -> dict[str, Array]:
    """All arrays of a file; nothing in it can run code."""
    hint = "Write it with numpy.savez(FILE, x=..., labels=...)."
    try:
        stored = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"cannot read {quote_path(path)}: there is no such file.", hint="Check the path.") from error
    except _UNREADABLE as error:
        raise DataError(f"cannot read {quote_path(path)} as .npz: {_first_line(error)}", hint=hint) from error
    if not isinstance(stored, np.lib.npyio.NpzFile):
        raise DataError(f"cannot read {quote_path(path)} as .npz: it holds one array without a name.", hint=hint)
    with stored:
        arrays = {}
        for name in stored.files:
            try:
                arrays[name] = stored[name]
            except _UNREADABLE as error:
                raise DataError(
                    f"cannot read the array {name!r} of {quote_path(path)}: {_first_line(error)}",
                    hint="Save numbers, not Python objects: they would run code when they are read.",
                ) from error
            if not isinstance(arrays[name], np.ndarray):
                raise DataError(f"cannot read {name!r} of {quote_path(path)}: it is no array.", hint=hint)
    return arrays


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def _labels_name(arrays: Mapping[str, Array], specs: Sequence[TensorSpec]) -> str | None:
    inputs = {spec.name for spec in specs}
    return next((name for name in LABELS if name in arrays and name not in inputs), None)


def _names(path: Path, held: Sequence[str], specs: Sequence[TensorSpec]) -> dict[str, str]:
    """Input -> the array that holds it."""
    others = [name for name in held if name not in LABELS]
    if len(specs) == 1 and specs[0].name not in held and len(others) == 1:
        return {specs[0].name: others[0]}
    for spec in specs:
        if spec.name not in held:
            raise DataError(
                f"{quote_path(path)} has no array '{spec.name}': expected one for the input {spec}, got "
                f"{', '.join(map(repr, held)) or 'none'}.",
                hint=f"Write it with numpy.savez(FILE, {', '.join(f'{s.name}=...' for s in specs)}, labels=...).",
            )
    return {spec.name: spec.name for spec in specs}


def _labels(path: Path, name: str, labels: Array, n_rows: int) -> Array:
    if labels.dtype.kind not in "iuf":
        raise DataError(
            f"cannot use the labels {name!r} of {quote_path(path)}: expected integers (classes) or floats (values), "
            f"got {labels.dtype}.",
            hint="Save class numbers from 0, with array.astype(numpy.int64).",
        )
    if labels.ndim == 0 or labels.shape[0] != n_rows:
        raise DataError(
            f"the labels {name!r} of {quote_path(path)} do not fit the inputs: expected {n_rows} rows, got the shape "
            f"{labels.shape}.",
            hint="Save one entry a row, in the order of the inputs.",
        )
    _refuse_nan(path, name, labels)
    return labels


def _refuse_nan(path: Path, name: str, array: Array) -> None:
    if array.dtype.kind == "f" and np.isnan(array).any():
        index = tuple(int(place) for place in np.argwhere(np.isnan(array))[0])
        raise DataError(
            f"the array {name!r} of {quote_path(path)} holds NaN, first at index {index}: expected numbers.",
            hint="Leave these rows out.",
        )


@dataclass
class _Fit:
    """Arrays against the specs of an artifact's inputs, one after the other.

    Attributes:
        found: Dynamic dim -> its size, and the array that said so.
        axes: As in `InputData`.
    """

    path: Path
    metadata: Mapping[str, Any]
    specs: Sequence[TensorSpec]
    found: dict[str, tuple[int, str]] = field(default_factory=dict)
    axes: dict[str, int | None] = field(default_factory=dict)
    row_values: int = 0

    @property
    def batch(self) -> int | str:
        """The dim that counts rows: a name, or the fixed size that the first input begins with."""
        name = batch_dim(self.specs)
        first = self.specs[0].dims
        if name is None and not first:
            raise DataError(f"the input {self.specs[0]} has no rows, so there is nothing to average over.")
        return first[0] if name is None else name

    @property
    def rows(self) -> int:
        """How many rows all arrays have."""
        return self.found[str(self.batch)][0]

    def checked(self, spec: TensorSpec, name: str, array: Array) -> Array:
        """One input in the dtype that the artifact takes, given in that or in the members' own.

        Raises:
            DataError: It does not fit.
        """
        wanted = _SAVED_AS.get(spec.dtype, spec.dtype)
        own = next(known.dtype for known in member_specs(self.metadata) if known.name == spec.name)
        if array.dtype.name not in (wanted, _SAVED_AS.get(own, own)):
            raise self._error(spec, name, wanted, array.dtype.name, f"Save it with array.astype(numpy.{wanted}).")
        lead = [self.metadata["n_members"]] if spec.name in self.metadata["per_member"] else []
        dims: list[int | str] = [*lead, *spec.dims]
        batch = self.batch
        axis = spec.dims.index(batch) + len(lead) if batch in spec.dims else None
        if isinstance(batch, int) and axis != len(lead):
            axis = None  # a fixed batch leads; the same number elsewhere is another size
        self.axes[spec.name] = axis
        shown = [f"rows, a multiple of {dim}" if place == axis and type(dim) is int and dim > 1 else
                 "rows" if place == axis else str(dim) for place, dim in enumerate(dims)]  # fmt: skip
        expected = f"shape ({', '.join(shown)}{',' if len(shown) == 1 else ''})"
        fits = array.ndim == len(dims) and all(
            place == axis or isinstance(dim, str) or dim == size
            for place, (dim, size) in enumerate(zip(dims, array.shape, strict=True))
        )
        if not fits or (axis is not None and isinstance(batch, int) and array.shape[axis] % batch):
            raise self._error(spec, name, expected, str(array.shape), "Prepare the data as for the members.")
        for place, (dim, size) in enumerate(zip(dims, array.shape, strict=True)):
            if isinstance(dim, str) or place == axis:
                self._note(spec, name, str(dim), size, is_batch=place == axis)
        if array.size == 0:
            raise self._error(spec, name, "at least one row", str(array.shape), "Save some rows.")
        _refuse_nan(self.path, name, array)
        self.row_values += array.size // (1 if axis is None else array.shape[axis])
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return native.astype(ml_dtypes.bfloat16 if spec.dtype == "bfloat16" else spec.dtype, copy=False)

    def _note(self, spec: TensorSpec, name: str, dim: str, size: int, *, is_batch: bool) -> None:
        known, by = self.found.setdefault(dim, (size, name))
        if known != size:
            raise self._error(
                spec, name, f"'{dim}' to be {known} as in {by!r}", f"{size}", "Equal names are equal sizes."
            )
        low, high = self.metadata["dims"].get(dim, (1, None))
        if not is_batch and not low <= size <= (high or math.inf):
            bounds = f"at least {low}" if high is None else f"{low} to {high}"
            raise self._error(spec, name, f"'{dim}' to be {bounds}", f"{size}", "Cut or pad it.")

    def call_sizes(self) -> tuple[int, ...]:
        """How many rows each call takes: as equal as may be, within what the artifact takes and memory allows."""
        batch, rows = self.batch, self.rows
        if isinstance(batch, int):
            return (batch,) * (rows // batch)
        low, high = self.metadata["dims"].get(batch, (1, None))
        most = max(1, min(_ROWS, _VALUES // (self.row_values * self.metadata["n_members"])))
        most = max(low, min(most, high or most))
        n_calls = math.ceil(rows / most)
        sizes = tuple(rows // n_calls + (index < rows % n_calls) for index in range(n_calls))
        if min(sizes) < low:
            n_calls = rows // low
            if not n_calls:
                raise DataError(
                    f"{quote_path(self.path)} has {rows} rows: expected at least {low}, the artifact's smallest batch.",
                    hint="Save more rows.",
                )
            sizes = tuple(rows // n_calls + (index < rows % n_calls) for index in range(n_calls))
        return sizes

    def _error(self, spec: TensorSpec, name: str, expected: str, got: str, hint: str) -> DataError:
        return DataError(
            f"the array {name!r} of {quote_path(self.path)} does not fit the input {spec}: expected {expected}, "
            f"got {got}.",
            hint=hint,
        )
