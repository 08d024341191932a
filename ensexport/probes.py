"""Random inputs for checking an artifact: several batch sizes, several seeds, every dynamic dim moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ensexport.batching.examples import random_tensor
from ensexport.errors import EnsexportError, ModelInputError, UsageError
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
    """

    sizes: Mapping[str, int]
    batch: int | None
    seed: int
    feed: Feed

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
    batches: Sequence[int] = BATCHES,
    seeds: Sequence[int] = SEEDS,
) -> list[Probe]:
    """Return one probe per batch size and seed.

    Args:
        specs: The inputs as one member sees them.
        per_member: Names of the inputs with a leading N.
        n_members: N.
        example_sizes: Sizes of the dynamic dims that the member is known to accept.
        dim_ranges: Smallest and largest size of each dynamic dim (None = no end).
        batches: Sizes of the batch dim; those outside its range are left out.
        seeds: One set of random values each.

    Raises:
        UsageError: There is no seed, or a batch size below 1.
    """
    if not seeds:
        raise UsageError("no seed is given: expected at least one set of random inputs to compare on.")
    if any(size < 1 for size in batches):
        raise UsageError(f"the batch sizes are {', '.join(map(str, batches))}: expected 1 or more.")
    probes = []
    for number, sizes in enumerate(_sizes(specs, example_sizes, dim_ranges, batches)):
        for seed in seeds:
            generator = torch.Generator().manual_seed(1000 * number + seed)
            feed = {}
            for spec in specs:
                shape = spec.shape(dict(sizes))
                feed[spec.name] = random_tensor(
                    spec.dtype, (n_members, *shape) if spec.name in per_member else shape, generator
                )
            batch = batch_dim(specs)
            probes.append(Probe(sizes, None if batch is None else sizes[batch], seed, feed))
    return probes


def usable_probes(module: nn.Module, probes: Sequence[Probe], per_member: Sequence[str]) -> list[Probe]:
    """Leave out the sizes that a member itself refuses (an image too small, a position table that ends).

    Args:
        module: A member.
        probes: Probes of one or several sizes; one of each size is tried.
        per_member: Names of the inputs with a leading N.

    Raises:
        ModelInputError: The member refuses all of them; carries its own error.
    """
    accepted: dict[tuple[tuple[str, int], ...], bool] = {}
    first: Exception | None = None
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
            first = first or error
            accepted[key] = False
    if first is not None and not any(accepted.values()):
        sizes = "; ".join(", ".join(f"{name} {size}" for name, size in key) for key in accepted)
        raise ModelInputError(
            f"the model accepts none of the sizes it should be compared at ({sizes}): "
            f"{type(first).__name__}: {str(first).strip()[:400]}",
            hint="Give each dimension that has one possible size a number in --input.",
        ) from first
    return [probe for probe in probes if accepted[tuple(probe.sizes.items())]]


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


def _inside(size: int, bounds: tuple[int, int | None] | None) -> bool:
    lower, upper = bounds or (1, None)
    return size >= lower and (upper is None or size <= upper)
