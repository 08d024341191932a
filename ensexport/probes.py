"""Random inputs for checking an artifact: several batch sizes, several seeds, every dynamic dim moved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ensexport.batching.examples import ValueRange, random_feed, random_tensor
from ensexport.batching.source import error_line
from ensexport.dtypes import Conversion
from ensexport.errors import EnsexportError, ModelInputError, UsageError
from ensexport.resources import size_text
from ensexport.spec import TensorSpec, batch_dim, dim_names
from ensexport.stacking.baseline import Feed, run_member

BATCHES = (1, 2, 3, 7, 13)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Probe:
    """One input to compare on.

    Attributes:
        sizes: Size of each dynamic dim.
        batch: Size of the batch dim; None when no dim is dynamic.
        seed: Seed of the values.
        feed: Inputs of the ensemble by name: `(N, B, ...)` for per-member ones, `(B, ...)` for shared ones.
        is_extreme: Are the dims other than the batch far from what the member was seen to accept? It may refuse that.
        base: Index of the probe whose rows these are, over and over: row i is its row i modulo its batch size.
        is_brief: Not run without ONNX Runtime's graph optimisation, which is slow.
        source: Where the values come from, if not from the seed.
    """

    sizes: Mapping[str, int]
    batch: int | None
    seed: int
    feed: Feed
    is_extreme: bool = False
    base: int | None = None
    is_brief: bool = False
    source: str = ""

    def member_feed(self, member_index: int, per_member: Sequence[str]) -> Feed:
        """The inputs as one member gets them."""
        return {name: tensor[member_index] if name in per_member else tensor for name, tensor in self.feed.items()}


def make_probes(
    specs: Sequence[TensorSpec],
    per_member: Sequence[str],
    n_members: int,
    *,
    example_sizes: Mapping[str, int],
    dim_ranges: Mapping[str, tuple[int, int | None]],
    ranges: Mapping[str, ValueRange] | None = None,
    batches: Sequence[int] = BATCHES,
    seeds: Sequence[int] = SEEDS,
    with_extremes: bool = False,
) -> list[Probe]:
    """Return one probe per batch size and seed.

    Args:
        specs: The inputs as one member sees them.
        per_member: Names of the inputs with a leading N.
        n_members: N.
        example_sizes: Sizes of the dynamic dims that the member is known to accept.
        dim_ranges: Smallest and largest size of each dynamic dim (None = no end).
        ranges: What the elements of an input may be, where it is known.
        batches: Sizes of the batch dim; those outside its range are left out.
        seeds: One set of random values each.
        with_extremes: Add probes with every other dynamic dim as small as it may be, and about twice as large.

    Raises:
        UsageError: There is no seed, or a batch size below 1.
    """
    if not seeds:
        raise UsageError("no seed is given: expected at least one set of random inputs to compare on.")
    if any(size < 1 for size in batches):
        raise UsageError(f"the batch sizes are {', '.join(map(str, batches))}: expected 1 or more.")
    usual = list(_sizes(specs, example_sizes, dim_ranges, batches))
    extreme = list(_extreme_sizes(specs, usual[:2][-1], dim_ranges)) if with_extremes else []
    batch = batch_dim(specs)
    probes = []
    for number, sizes in enumerate([*usual, *extreme]):
        is_extreme = number >= len(usual)
        for seed in seeds[:1] if is_extreme else seeds:
            feed = random_feed(
                specs, sizes, 1000 * number + seed, ranges=ranges, per_member=per_member, n_members=n_members
            )
            probes.append(Probe(sizes, None if batch is None else sizes[batch], seed, feed, is_extreme))
    return probes


def batches_that_fit(
    batches: Sequence[int], activation_bytes: Callable[[int], int]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Leave out the batch sizes at which a whole ensemble's activations take gigabytes; the smallest three stay.

    Args:
        batches: Sizes of the batch dim.
        activation_bytes: What the activations of all members take at a batch size.

    Returns:
        The batch sizes, and what is left out, as warnings.
    """
    kept = sorted(batches)[:_FEW]
    kept += [batch for batch in batches if batch not in kept and activation_bytes(batch) <= _MAX_ACTIVATION_BYTES]
    left = [batch for batch in batches if batch not in kept]
    if not left:
        return tuple(batches), ()
    text = (
        f"not compared at batch {', '.join(map(str, left))}, where the members' activations take about "
        f"{size_text(activation_bytes(min(left)))} and more: run `ensexport bench` there, which compares first."
    )
    return tuple(batch for batch in batches if batch in kept), (text,)


_MAX_ACTIVATION_BYTES = 1_000_000_000


@dataclass(frozen=True)
class UsableProbes:
    """The probes that a member accepts.

    Attributes:
        probes: Those of the sizes that it accepts.
        warnings: Which batch sizes it refuses.
        seconds: How long a member took on one probe of each size.
    """

    probes: list[Probe]
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0


def find_probes(
    module: nn.Module,
    specs: Sequence[TensorSpec],
    per_member: Sequence[str],
    n_members: int,
    *,
    example_sizes: Mapping[str, int],
    dim_ranges: Mapping[str, tuple[int, int | None]],
    ranges: Mapping[str, ValueRange] | None = None,
    batches: Sequence[int] = BATCHES,
    seeds: Sequence[int] = SEEDS,
    with_extremes: bool = True,
) -> UsableProbes:
    """Make probes and leave out the sizes that a member refuses; see `make_probes` for the arguments.

    Where it takes hardly any of `batches` (multiples of four only), multiples of the size it was seen to accept are
    tried too.

    Raises:
        UsageError: There is no seed, or a batch size below 1.
        ModelInputError: The member refuses all sizes; carries its own error.
    """

    def made(sizes: Sequence[int]) -> list[Probe]:
        return make_probes(
            specs,
            per_member,
            n_members,
            example_sizes=example_sizes,
            dim_ranges=dim_ranges,
            ranges=ranges,
            batches=sizes,
            seeds=seeds,
            with_extremes=with_extremes,
        )

    found = usable_probes(module, made(batches), per_member)
    batch = batch_dim(specs)
    sizes = {probe.batch for probe in found.probes}
    if found.warnings and batch is not None and len(sizes) < _FEW:
        more = usable_probes(module, made([factor * example_sizes[batch] for factor in (1, 2, 3)]), per_member)
        added = [probe for probe in more.probes if probe.batch not in sizes and not probe.is_extreme]
        found = UsableProbes([*found.probes, *added], found.warnings, found.seconds)
    if n_members * found.seconds * len(seeds) * _SHARE > _MAX_S:
        return UsableProbes(_cheap(found.probes, specs, per_member), found.warnings)
    masks = [spec.name for spec in specs if _may_be_mask(spec, ranges or {})]
    if not masks:
        return found
    return UsableProbes([_finite(module, probe, masks, per_member) for probe in found.probes], found.warnings)


_MAX_S = 10.0  # what comparing may take before it is made cheaper
_SHARE = 6  # how long all comparing takes, float64 and artifacts, as a share of the loop in the members' own dtype


def _cheap(probes: Sequence[Probe], specs: Sequence[TensorSpec], per_member: Sequence[str]) -> list[Probe]:
    """Fewer probes for members that take seconds: one seed, and the same few rows at every batch size.

    Where a member treats its rows one by one, which the loop finds out at the small sizes, it need not be run again
    on the same rows at the large ones. The artifact is run at all of them. Not so beside an input of integers without
    the batch dim: they may be row numbers, and the rows they point at do not follow.
    """
    batch = batch_dim(specs)
    first = [probe for probe in probes if probe.seed == probes[0].seed]
    usual = [probe for probe in first if not probe.is_extreme]
    bases = [probe for probe in usual if probe.batch is not None and 1 < probe.batch <= _ROWS]
    if batch is None or not bases:
        return [replace(probe, is_brief=True) for probe in first]
    base = max(bases, key=lambda probe: probe.batch or 0)
    ordered = [base, *(probe for probe in usual if probe is not base)]
    has_row_numbers = any(spec.dims and batch not in spec.dims and spec.dtype.startswith("int") for spec in specs)
    made = [base]
    for probe in ordered[1:]:
        feed = {}
        for spec in specs:
            tensor = base.feed[spec.name]
            for dim, name in enumerate(spec.dims):
                if name == batch:
                    rows = torch.arange(probe.batch or 0) % (base.batch or 1)
                    tensor = tensor.index_select(dim + (spec.name in per_member), rows)
            feed[spec.name] = tensor
        sizes = {**base.sizes, batch: probe.batch or 0}
        own = None if has_row_numbers else 0
        made.append(Probe(sizes, probe.batch, base.seed, feed, base=own, is_brief=True))
    return [*made, *(replace(probe, is_brief=True) for probe in first if probe.is_extreme)]


_ROWS = 4


def _may_be_mask(spec: TensorSpec, ranges: Mapping[str, ValueRange]) -> bool:
    return spec.dtype == "bool" or ("int" in spec.dtype and spec.name not in ranges)


def _finite(module: nn.Module, probe: Probe, masks: Sequence[str], per_member: Sequence[str]) -> Probe:
    """A probe of the same sizes that the member answers with finite numbers, if a change of its masks gives one.

    Attention to nothing but padding is 0/0: whether that is NaN differs between torch's own kernels.
    """
    generator = torch.Generator().manual_seed(probe.seed)
    feed = probe.feed
    for attempt in range(_ATTEMPTS + 3):
        changed = Probe(probe.sizes, probe.batch, probe.seed, feed, probe.is_extreme)
        outputs = run_member(module, changed.member_feed(0, per_member))
        if all(bool(torch.isfinite(value).all()) for value in outputs.values()):
            return changed
        for name in masks:
            shape, kind = tuple(probe.feed[name].shape), probe.feed[name].dtype
            drawn = random_tensor(str(kind).removeprefix("torch."), shape, generator)
            feed = {**feed, name: drawn if attempt < _ATTEMPTS else torch.full_like(drawn, attempt - _ATTEMPTS)}
    return probe


_ATTEMPTS = 8


_FEW = 3  # batch sizes: with two, one of which is often 1, a size that was fixed may go unseen


def few_probes(probes: Sequence[Probe], seconds: float) -> Collection[int]:
    """Which probes to run where the first took `seconds` and all would take too long: one of the smallest batch sizes.

    Torch's kernels for 16 bits are slow on a CPU: a batched product takes 60 times as long as in float32.
    """
    rows = [probe.batch or 1 for probe in probes]
    if seconds / rows[0] * sum(rows) <= _MAX_S:
        return range(len(probes))
    first_of = {batch: rows.index(batch) for batch in sorted(set(rows))[:_FEW]}
    return {0, *first_of.values()}


def through(probes: Sequence[Probe], conversion: Conversion | None) -> list[Probe]:
    """The probes with values that a file's input dtype holds: what is rounded on the way in is no error of the file."""
    if conversion is None:
        return list(probes)
    own, narrow = getattr(torch, conversion.members), getattr(torch, conversion.io)
    return [
        replace(probe, feed={n: t.to(narrow).to(own) if t.dtype == own else t for n, t in probe.feed.items()})
        for probe in probes
    ]


def file_feed(feed: Feed, conversion: Conversion) -> Feed:
    """Inputs of the members as a converted file takes them."""
    own, io = getattr(torch, conversion.members), getattr(torch, conversion.io)
    return {name: tensor.to(io) if tensor.dtype == own else tensor for name, tensor in feed.items()}


def usable_probes(module: nn.Module, probes: Sequence[Probe], per_member: Sequence[str]) -> UsableProbes:
    """Leave out the sizes that a member itself refuses (an image too small, a position table that ends).

    Args:
        module: A member.
        probes: Probes of one or several sizes; one of each size is tried.
        per_member: Names of the inputs with a leading N.

    Raises:
        ModelInputError: The member refuses all of them; carries its own error.
    """
    accepted: dict[tuple[tuple[str, int], ...], bool] = {}
    extreme = {tuple(probe.sizes.items()) for probe in probes if probe.is_extreme}
    first: Exception | None = None
    begin = time.perf_counter()
    for probe in probes:
        key = tuple(probe.sizes.items())
        if key in accepted:
            continue
        try:
            run_member(module, probe.member_feed(0, per_member))
            accepted[key] = True
        except EnsexportError:
            raise
        except Exception as error:  # noqa: BLE001 - the user's model says no in its own way; so may the artifact
            first = first or (None if key in extreme else error)
            accepted[key] = False
    seconds = time.perf_counter() - begin
    usable = [probe for probe in probes if accepted[tuple(probe.sizes.items())]]
    if first is None:
        return UsableProbes(usable, (), seconds)
    told = f"{type(first).__name__}: {str(first).strip()[:400]}"
    if not usable:
        sizes = "; ".join(", ".join(f"{name} {size}" for name, size in key) for key in accepted)
        raise ModelInputError(
            f"the model accepts none of the sizes it should be compared at ({sizes}): {told}",
            hint="Give each dimension that has one possible size a number in --input.",
        ) from first
    refused = [key for key, is_taken in accepted.items() if not is_taken and key not in extreme]
    sizes = "; ".join(", ".join(f"{name} {size}" for name, size in key) for key in refused)
    line = error_line(first)
    warning = f"not compared at {sizes}, which the model itself refuses: {told}" + (f" ({line})" if line else "")
    return UsableProbes(usable, (warning,), seconds)


def _sizes(
    specs: Sequence[TensorSpec],
    example: Mapping[str, int],
    ranges: Mapping[str, tuple[int, int | None]],
    batches: Sequence[int],
) -> Iterator[dict[str, int]]:
    batch = batch_dim(specs)
    others = [name for name in dim_names(specs) if name != batch]
    # A dim without a range of its own is an expression (`4*k`): only the size that was tried is safe.
    allowed = [size for size in batches if batch is not None and batch in ranges and _inside(size, ranges[batch])]
    for number, size in enumerate(allowed or [None]):
        sizes = {} if size is None or batch is None else {batch: size}
        if batch is not None and size is None:
            sizes = {batch: example[batch]}
        for name in others:
            steps = [step for step in (0, 1, -1) if _inside(example[name] + step, ranges.get(name))]
            step = steps[number % len(steps)] if name in ranges and steps else 0
            sizes[name] = example[name] + step
        yield sizes


def _extreme_sizes(
    specs: Sequence[TensorSpec], usual: Mapping[str, int], ranges: Mapping[str, tuple[int, int | None]]
) -> Iterator[dict[str, int]]:
    """As small and as large as each dim other than the batch may be, within reason."""
    batch = batch_dim(specs)
    others = [name for name in dim_names(specs) if name != batch and name in ranges]
    # One place in a mask would be all of it, see `random_tensor`.
    masked = {spec.dims[-1] for spec in specs if len(spec.dims) > 1 and not spec.dtype.startswith(("float", "bfloat"))}
    small = {name: max(ranges[name][0], 2 if name in masked else 1) for name in others}
    twice = {**usual, **{name: 2 * usual[name] for name in others}}
    is_affordable = all(math.prod(spec.shape(twice)) <= _MAX_ELEMENTS for spec in specs)
    double = {name: twice[name] if is_affordable else usual[name] + 8 for name in others}
    odd = {name: size + 1 for name, size in double.items()}
    for wanted in (small, double, odd):
        sizes = {name: min(size, ranges[name][1] or size) for name, size in wanted.items()}
        if any(sizes[name] != usual[name] for name in others):
            yield {**usual, **sizes}


_MAX_ELEMENTS = 2**20  # of one input


def _inside(size: int, bounds: tuple[int, int | None] | None) -> bool:
    lower, upper = bounds or (1, None)
    return size >= lower and (upper is None or size <= upper)
