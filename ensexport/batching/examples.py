"""Example inputs: tensors of the shapes and dtypes that were specified, at sizes the model accepts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ensexport.batching.chance import is_one_by_chance, shapes_of_run
from ensexport.batching.source import error_line
from ensexport.errors import EnsexportError, ModelInputError, RandomModelError
from ensexport.spec import TensorSpec, batch_dim, dim_names
from ensexport.stacking.baseline import Feed, run_member
from ensexport.stacking.state import named_tensors

_BATCH = 3
# A model may take one batch size only: then these are tried, and what its own tensors have.
_BATCHES = (2, 4, 8, 16, 32, 64, 10, 12, 24, 100, 1)
_MAX_BATCH = 256
# Sizes to try for dynamic dims other than the batch: convnets need some room, position tables have an end, and a
# window over sound has hundreds of samples.
_SIZES = (16, 32, 64, 8, 128, 224, 4, 2, 512, 2048, 16384)
_FAR_SIZES = (16, 512, 8192)
_MAX_ELEMENTS = 2**22  # of one input


@dataclass(frozen=True)
class Example:
    """Inputs one member accepts, the sizes of the dynamic dims in them, and what it returned."""

    feed: Feed
    sizes: Mapping[str, int]
    outputs: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class IntegerRange:
    """The integers an input may hold: `low <= value < high`.

    Attributes:
        low: Broadcasts against the input.
        high: Likewise; where it is `low`, nothing is known.
    """

    low: torch.Tensor
    high: torch.Tensor

    def draw(self, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return `tensor` with integers where they are known; every fourth is 0 or 1, which often mean something."""
        shape = tensor.shape
        low, high = self.low.expand(shape), self.high.expand(shape)
        share = torch.rand(shape, generator=generator, dtype=torch.float64)
        drawn = low + (share * (high - low)).to(torch.int64)
        special = torch.randint(0, 2, shape, generator=generator)
        is_special = (torch.rand(shape, generator=generator) < 0.25) & (special >= low) & (special < high)
        return torch.where(low < high, torch.where(is_special, special, drawn).to(tensor.dtype), tensor)

    @property
    def bounds(self) -> tuple[int, int | None]:
        """Smallest and largest value that is drawn."""
        is_known = self.low < self.high
        return int(self.low[is_known].min()), int(self.high[is_known].max()) - 1

    def to_json(self) -> dict[str, Any]:
        """Return what `range_from_json` reads."""
        return {"low": self.low.tolist(), "high": self.high.tolist()}


@dataclass(frozen=True)
class BagOffsets:
    """Where the bags of an `nn.EmbeddingBag` start among the ids: rising from 0 to at most their number.

    Attributes:
        of: The input that holds the ids.
        has_end: Is the last one the number of ids itself (`include_last_offset`)?
    """

    of: str
    has_end: bool

    def draw(self, tensor: torch.Tensor, generator: torch.Generator, n_ids: int) -> torch.Tensor:
        """Return sorted offsets in the shape and dtype of `tensor`; the first is 0."""
        drawn = torch.randint(0, n_ids + 1, tensor.shape, generator=generator).sort(-1).values
        drawn[..., 0] = 0
        if self.has_end:
            drawn[..., -1] = n_ids
        return drawn.to(tensor.dtype)

    @property
    def bounds(self) -> tuple[int, int | None]:
        """They start at 0 and end with the ids."""
        return 0, None

    def to_json(self) -> dict[str, Any]:
        """Return what `range_from_json` reads."""
        return {"offsets_of": self.of, "has_end": self.has_end}


ValueRange = IntegerRange | BagOffsets


def range_from_json(value: Mapping[str, Any]) -> ValueRange:
    """Read what `to_json` wrote."""
    if "offsets_of" in value:
        return BagOffsets(value["offsets_of"], value["has_end"])
    return IntegerRange(torch.tensor(value["low"]), torch.tensor(value["high"]))


def integer_inputs(specs: Sequence[TensorSpec], ranges: Mapping[str, ValueRange]) -> dict[str, tuple[int, int | None]]:
    """Return the smallest and largest value that is drawn for each integer input (None: depends on other sizes)."""
    integers = [spec.name for spec in specs if spec.name in ranges or "int" in spec.dtype]
    return {name: ranges[name].bounds if name in ranges else (0, 1) for name in integers}


def random_feed(
    specs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    seed: int,
    *,
    ranges: Mapping[str, ValueRange] | None = None,
    per_member: Sequence[str] = (),
    n_members: int = 1,
) -> Feed:
    """Return random inputs of the given sizes.

    Args:
        specs: The inputs as one member sees them.
        sizes: The size of each dynamic dim.
        seed: Of the random numbers.
        ranges: The values of inputs for which they are known; else floats are normal, integers 0 or 1 (valid in every
            table), booleans fair.
        per_member: Names of the inputs with a leading N.
        n_members: N.
    """
    generator = torch.Generator().manual_seed(seed)
    feed: Feed = {}
    known = ranges or {}
    for spec in specs:
        shape = spec.shape(dict(sizes))
        drawn = random_tensor(spec.dtype, (n_members, *shape) if spec.name in per_member else shape, generator)
        values = known.get(spec.name)
        feed[spec.name] = values.draw(drawn, generator) if isinstance(values, IntegerRange) else drawn
    for name, values in known.items():
        if isinstance(values, BagOffsets):
            ids = feed[values.of][0] if values.of in per_member else feed[values.of]
            feed[name] = values.draw(feed[name], generator, ids.numel())
    return feed


def random_tensor(dtype: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return a random tensor of a dtype by name."""
    kind: torch.dtype = getattr(torch, dtype)
    if kind.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(kind)
    drawn = torch.randint(0, 2, shape, generator=generator)
    if drawn.dim() > 1 and drawn.shape[-1] > 1:
        # Most likely a mask: a row in which everything is masked means nothing, and torch's kernels differ about it.
        is_constant = (drawn == drawn[..., :1]).all(-1, keepdim=True)
        last = torch.arange(drawn.shape[-1]) == drawn.shape[-1] - 1
        drawn = torch.where(is_constant & last, 1 - drawn, drawn)
    return drawn.to(kind)


def find_example(module: nn.Module, specs: Sequence[TensorSpec]) -> Example:
    """Run a member on inputs of the specified shapes, at the first sizes and values it accepts, twice.

    Raises:
        ModelInputError: It accepts none of those tried; carries the model's own error and line.
        RandomModelError: Two runs on the same input differ.
    """
    first: Exception | None = None
    for sizes, change in _candidates(module, specs):
        feed = change(random_feed(specs, sizes, seed=0))
        try:
            outputs = run_member(module, feed)
            again = run_member(module, feed)
        except EnsexportError:
            raise
        except Exception as error:  # noqa: BLE001 - this runs the user's model: anything may come out
            first = first or error
            continue
        for name, value in outputs.items():
            other = again[name]
            if value.shape != other.shape or not torch.equal(torch.nan_to_num(value), torch.nan_to_num(other)):
                raise RandomModelError(
                    f"cannot pack the model: output '{name}' differs between two runs on the same input in eval mode.",
                    hint="Remove the random numbers or the hidden state from forward.",
                )
        return _large_enough(module, specs, Example(feed, sizes, outputs), change)
    assert first is not None
    line = error_line(first)
    raise ModelInputError(
        f"the model does not accept the inputs {', '.join(map(str, specs))}: "
        f"{type(first).__name__}: {str(first).strip()[:400]}" + (f" ({line})" if line else ""),
        hint="Check the name, dtype and shape in --input against the model's forward.",
    ) from first


def _large_enough(
    module: nn.Module, specs: Sequence[TensorSpec], example: Example, change: Callable[[Feed], Feed]
) -> Example:
    """The example, or one of twice its size as long as that takes away a size of 1 further on."""
    batch = batch_dim(specs)
    if not set(example.sizes) - {batch}:
        return example
    shapes = shapes_of_run(module, example.feed)
    while True:
        sizes = {name: size if name == batch else 2 * size for name, size in example.sizes.items()}
        if not _fits(specs, sizes):
            return example
        feed = change(random_feed(specs, sizes, seed=0))
        try:
            larger = shapes_of_run(module, feed)
            if not is_one_by_chance(shapes, larger):
                return example
            example, shapes = Example(feed, sizes, run_member(module, feed)), larger
        except EnsexportError:
            raise
        except Exception:  # noqa: BLE001 - the model takes no such size
            return example


def _fits(specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> bool:
    return all(math.prod(spec.shape(dict(sizes))) <= _MAX_ELEMENTS for spec in specs)


def _candidates(
    module: nn.Module, specs: Sequence[TensorSpec]
) -> Iterator[tuple[dict[str, int], Callable[[Feed], Feed]]]:
    """Yield sizes and changes to random values, the likely ones first: each that is not taken costs a run."""
    likely, unlikely = _sizes(module, specs)
    for change in (_no_change, _zero_integers, _one_integers, _numbers_below_one):
        for sizes in likely:
            yield sizes, change
    for change in (_no_change, _zero_integers):
        for sizes in _mixed_sizes(specs):
            yield sizes, change
    for sizes in unlikely:
        yield sizes, _no_change


def _no_change(feed: Feed) -> Feed:
    return feed


def _zero_integers(feed: Feed) -> Feed:
    """Offsets begin with 0; a table may have one row."""
    return _with_integers(feed, 0)


def _one_integers(feed: Feed) -> Feed:
    """Some count from one."""
    return _with_integers(feed, 1)


def _with_integers(feed: Feed, value: int) -> Feed:
    is_kept = {name: tensor.is_floating_point() or tensor.dtype is torch.bool for name, tensor in feed.items()}
    return {name: tensor if is_kept[name] else torch.full_like(tensor, value) for name, tensor in feed.items()}


def _numbers_below_one(feed: Feed) -> Feed:
    """Columns of categories in a float tensor become row number 0."""
    return {
        name: torch.frac(tensor.abs()) if tensor.is_floating_point() else tensor
        for name, tensor in _zero_integers(feed).items()
    }


def _mixed_sizes(specs: Sequence[TensorSpec]) -> list[dict[str, int]]:
    """Dims of very different sizes: a long sound with a short text."""
    batch = batch_dim(specs)
    others = [name for name in dim_names(specs) if name != batch]
    if len(others) not in (2, 3):
        return []
    found = [dict(zip(others, sizes, strict=True)) for sizes in itertools.product(_FAR_SIZES, repeat=len(others))]
    mixed = [{**sizes, **({batch: _BATCH} if batch else {})} for sizes in found if len(set(sizes.values())) > 1]
    return [sizes for sizes in mixed if _fits(specs, sizes)]


def _sizes(module: nn.Module, specs: Sequence[TensorSpec]) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """Sizes to try, then those for a model that takes one batch size only, so that it can be said which."""
    batch = batch_dim(specs)
    others = [name for name in dim_names(specs) if name != batch]
    rest = [dict.fromkeys(others, size) for size in (_SIZES if others else _SIZES[:1])]
    rest = [sizes for sizes in rest if _fits(specs, {**sizes, **({batch: _BATCH} if batch else {})})] or rest[:1]
    if batch is None:
        return rest, []
    fixed = {size for tensor in named_tensors(module).values() for size in tensor.shape if 1 < size <= _MAX_BATCH}
    batches = list(dict.fromkeys((*_BATCHES, *sorted(fixed)[:16])))
    return [{batch: _BATCH, **sizes} for sizes in rest], [
        {batch: size, **sizes} for size in batches for sizes in rest[:2]
    ]
