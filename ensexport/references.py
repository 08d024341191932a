"""What the members return on the probes: the loop in float64, and how far the loop in their own dtype is from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ensexport.batching.source import error_line
from ensexport.compare import Array, compare_arrays, is_exact
from ensexport.dtypes import Conversion
from ensexport.errors import EnsexportError, ModelInputError
from ensexport.probes import Probe
from ensexport.runtime.torch_runner import array_from_tensor
from ensexport.stacking.baseline import MemberSource, run_member
from ensexport.stacking.state import release_tensors

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Reference:
    """What one member returns on one probe.

    Attributes:
        expected: Output name -> value of the float64 loop (of the native loop for integers and booleans, and where
            only one of the two is finite: float16 overflows in the members too).
        loop_error: Output name -> the native loop's own `max|y - expected| / max|expected|`; where the file computes in
            another dtype, that of the loop in that one.
        dtype: Output name -> dtype name that a file should return: the member's own, unless it is converted.
        precision: Output name -> dtype name whose tolerance holds.
    """

    expected: Mapping[str, Array]
    loop_error: Mapping[str, float]
    dtype: Mapping[str, str]
    precision: Mapping[str, str]

    def renamed(self, names: Mapping[str, str]) -> Reference:
        """The same values under the artifact's output names."""
        return Reference(
            {names[name]: value for name, value in self.expected.items()},
            {names[name]: value for name, value in self.loop_error.items()},
            {names[name]: value for name, value in self.dtype.items()},
            {names[name]: value for name, value in self.precision.items()},
        )


def reference_outputs(
    source: MemberSource,
    probes: Sequence[Probe],
    per_member: Sequence[str],
    *,
    members: Sequence[int] | None = None,
    conversion: Conversion | None = None,
    on_progress: OnProgress | None = None,
) -> list[list[Reference]]:
    """Run the loop over the members, or over those named; returns one list a member, a reference a probe.

    One member is in memory at a time, first in its own dtype, then in float64; with a conversion, on a few probes also
    in the dtype that the file computes in.
    """
    references: list[list[Reference]] = []
    chosen = range(len(source)) if members is None else members
    for member_index in chosen:
        module = source.build(member_index)
        try:
            made = _references_of(module, probes, per_member, member_index)
            if conversion is not None:
                made = converted_references(module, probes, per_member, member_index, made, conversion)
            references.append(made)
        except (EnsexportError, MemoryError):
            raise
        except Exception as error:
            line = error_line(error)
            raise ModelInputError(
                f"member {member_index} fails on random inputs, where others like them were taken: "
                f"{type(error).__name__}: {str(error).strip()[:400]}" + (f" ({line})" if line else ""),
                hint="Random inputs have normal floats and integers of 0, 1 and the rows of tables: the model must "
                "take them.",
                member_index=member_index,
            ) from error
        release_tensors(module)
        if on_progress is not None:
            on_progress("loop", len(references), len(chosen))
    return references


def _references_of(
    module: nn.Module, probes: Sequence[Probe], per_member: Sequence[str], member_index: int
) -> list[Reference]:
    feeds = [probe.member_feed(member_index, per_member) for probe in probes]
    done: dict[int, dict[str, Array]] = {}
    known = _repeated_rows(module, probes, feeds, done)
    left = [number for number in range(len(probes)) if number not in known]
    native = [done[n] if n in done else arrays(run_member(module, feeds[n])) for n in left]
    exact = _run_float64(module, [feeds[number] for number in left])
    made = {
        number: _reference(own, own if better is None else better)
        for number, own, better in zip(left, native, exact, strict=True)
    }
    for number, axes in known.items():
        made[number] = _at_rows(made[probes[number].base or 0], axes, probes[number].batch or 0)
    return [made[number] for number in range(len(probes))]


def converted_references(
    module: nn.Module,
    probes: Sequence[Probe],
    per_member: Sequence[str],
    member_index: int,
    references: Sequence[Reference],
    conversion: Conversion,
) -> list[Reference]:
    """The references for a file that computes in another dtype than the member.

    How far it may be off is what the loop itself loses there: under torch's autocast in 16 bits, converted in 32. If
    torch cannot run the member so, the floor of the dtype alone holds. The largest loss of the smallest probes counts
    for all: arithmetic in 16 bits is slow on a CPU.
    """
    errors: dict[str, float] = {}
    smallest = sorted(range(len(probes)), key=lambda number: probes[number].batch or 0)[:_CONVERTED_PROBES]
    end = time.perf_counter() + _CONVERTED_S
    for number in smallest:
        if errors and time.perf_counter() > end:
            break
        feed = probes[number].member_feed(member_index, per_member)
        for name, value in _run_converted(module, feed, conversion.inside).items():
            expected = references[number].expected[name]
            if not is_exact(expected.dtype) and value.shape == expected.shape and np.isfinite(value).all():
                errors[name] = max(errors.get(name, 0.0), compare_arrays(expected, value).max_rel)
    return [
        replace(
            reference,
            loop_error={n: max(error, errors.get(n, 0.0)) for n, error in reference.loop_error.items()},
            dtype={n: conversion.io_dtype(dtype) for n, dtype in reference.dtype.items()},
            precision=dict.fromkeys(reference.precision, conversion.coarsest),
        )
        for reference in references
    ]


_CONVERTED_PROBES = 3
_CONVERTED_S = 1.0  # a member, after which no other probe is begun


def _run_converted(module: nn.Module, feed: dict[str, torch.Tensor], inside: str) -> dict[str, Array]:
    """The member's outputs with its arithmetic in another dtype; empty if torch cannot run it so.

    The member is moved to float32 in place, which autocast starts from.
    """
    dtype = getattr(torch, inside)
    is_half = dtype.itemsize < 4
    try:
        with torch.autocast("cpu", dtype=dtype if is_half else torch.bfloat16, enabled=is_half):
            outputs = run_member(module, feed, dtype=torch.float32 if is_half else dtype)
    except Exception:  # noqa: BLE001 - a kernel that is not there: the bound is then the narrower one
        return {}
    return arrays({name: value.to(torch.float32) for name, value in outputs.items() if value.is_floating_point()})


def _repeated_rows(
    module: nn.Module,
    probes: Sequence[Probe],
    feeds: Sequence[dict[str, torch.Tensor]],
    done: dict[int, dict[str, Array]],
) -> dict[int, dict[str, int | None]]:
    """Find the probes whose outputs follow from the rows of another: probe -> output -> batch axis (None: it has none).

    The member is run at the sizes below the other probe's, and on it; `done` keeps what it returns. Unless each output
    there is made of the other's first rows, within rounding, nothing follows.
    """
    small = [n for n, probe in enumerate(probes) if probe.base is not None and _below(probe, probes[probe.base])]
    repeated = [n for n, probe in enumerate(probes) if probe.base is not None]
    if not small:
        return {}
    base = probes[repeated[0]].base or 0
    whole = done[base] = arrays(run_member(module, feeds[base]))
    axes: dict[str, int | None] = {}
    for number in small:
        done[number] = arrays(run_member(module, feeds[number]))
        for name, part in done[number].items():
            found = [axis for axis, size in enumerate(part.shape) if size != whole[name].shape[axis]]
            axis = found[0] if found else None
            sizes = None if axis is None else (part.shape[axis], whole[name].shape[axis])
            if sizes is not None and sizes != (probes[number].batch, probes[base].batch):
                return {}  # several rows of the output for one of the input
            rows = whole[name] if axis is None else np.take(whole[name], range(part.shape[axis]), axis)
            is_alike = rows.shape == part.shape and compare_arrays(rows, part).max_rel <= _ALIKE
            if len(found) > 1 or not is_alike or axes.setdefault(name, axis) != axis:
                return {}
    return dict.fromkeys(repeated, axes)


_ALIKE = 1e-3  # float16 members round differently at another batch size; rows that depend on each other differ by more


def _below(probe: Probe, base: Probe) -> bool:
    return (probe.batch or 0) < (base.batch or 0)


def _at_rows(base: Reference, axes: Mapping[str, int | None], batch: int) -> Reference:
    """What a member returns for `batch` rows that repeat those of `base`."""
    expected = dict(base.expected)
    for name, axis in axes.items():
        if axis is not None:
            rows = np.arange(batch) % base.expected[name].shape[axis]
            expected[name] = np.take(base.expected[name], rows, axis)
    return replace(base, expected=expected)


def _run_float64(module: nn.Module, feeds: Sequence[dict[str, torch.Tensor]]) -> list[dict[str, Array] | None]:
    """The float64 outputs, or None for each feed if the model, which takes its own dtype, refuses float64."""
    try:
        return [arrays(run_member(module, feed, dtype=torch.float64)) for feed in feeds]
    except Exception:  # noqa: BLE001 - it says no in its own way: an assertion, a kernel that is not there
        return [None] * len(feeds)


def arrays(outputs: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """Tensors by name as NumPy arrays."""
    return {name: array_from_tensor(value) for name, value in outputs.items()}


def _reference(native: Mapping[str, Array], exact: Mapping[str, Array]) -> Reference:
    expected: dict[str, Array] = {}
    errors: dict[str, float] = {}
    for name, own in native.items():
        expected[name] = own if is_exact(own.dtype) else _finite_alike(exact[name], own)
        errors[name] = compare_arrays(expected[name], own).max_rel
    dtypes = {name: str(own.dtype) for name, own in native.items()}
    return Reference(expected, errors, dtypes, dtypes)


def _finite_alike(exact: Array, own: Array) -> Array:
    """`exact`, with the members' own value where NaN or Inf is on one side only or differs.

    Else the loop's own error would be infinite there, and so would be what the artifact is allowed.
    """
    left, right = exact.astype(np.result_type(exact, np.float64)), own.astype(np.result_type(exact, np.float64))
    agree = (np.isfinite(left) & np.isfinite(right)) | (left == right) | (np.isnan(left) & np.isnan(right))
    return exact if bool(agree.all()) else np.where(agree, left, right)
