"""Example inputs: tensors of the shapes and dtypes that were specified, at sizes the model accepts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ensexport.batching.source import error_line
from ensexport.errors import EnsexportError, ModelInputError, RandomModelError
from ensexport.spec import TensorSpec, batch_dim, dim_names
from ensexport.stacking.baseline import Feed, run_member

_BATCH = 3
# Sizes to try for dynamic dims other than the batch: convnets need some room, position tables have an end.
_SIZES = (16, 32, 64, 8, 128, 224, 4, 2)


@dataclass(frozen=True)
class Example:
    """Inputs one member accepts, the sizes of the dynamic dims in them, and what it returned."""

    feed: Feed
    sizes: Mapping[str, int]
    outputs: Mapping[str, torch.Tensor]


def random_feed(specs: Sequence[TensorSpec], sizes: Mapping[str, int], seed: int) -> Feed:
    """Return random inputs: normal floats, integers from {0, 1} (valid in every table), fair booleans."""
    generator = torch.Generator().manual_seed(seed)
    return {spec.name: random_tensor(spec.dtype, spec.shape(dict(sizes)), generator) for spec in specs}


def random_tensor(dtype: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return a random tensor of a dtype by name."""
    kind: torch.dtype = getattr(torch, dtype)
    if kind.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(kind)
    return torch.randint(0, 2, shape, generator=generator).to(kind)


def find_example(module: nn.Module, specs: Sequence[TensorSpec]) -> Example:
    """Run a member on inputs of the specified shapes, at the first sizes it accepts, twice.

    Raises:
        ModelInputError: It accepts none of the sizes tried; carries the model's own error and line.
        RandomModelError: Two runs on the same input differ.
    """
    first: Exception | None = None
    for sizes in _candidates(specs):
        feed = random_feed(specs, sizes, seed=0)
        try:
            outputs = run_member(module, feed)
            again = run_member(module, feed)
        except EnsexportError:
            raise
        except Exception as error:  # noqa: BLE001 - this runs the user's model: anything may come out
            first = first or error
            continue
        for name, value in outputs.items():
            if not torch.equal(torch.nan_to_num(value), torch.nan_to_num(again[name])):
                raise RandomModelError(
                    f"cannot pack the model: output '{name}' differs between two runs on the same input in eval mode.",
                    hint="Remove the random numbers or the hidden state from forward.",
                )
        return Example(feed, sizes, outputs)
    assert first is not None
    line = error_line(first)
    raise ModelInputError(
        f"the model does not accept the inputs {', '.join(map(str, specs))}: "
        f"{type(first).__name__}: {str(first).strip()[:400]}" + (f" ({line})" if line else ""),
        hint="Check the name, dtype and shape in --input against the model's forward.",
    ) from first


def _candidates(specs: Sequence[TensorSpec]) -> Iterator[dict[str, int]]:
    batch = batch_dim(specs)
    others = [name for name in dim_names(specs) if name != batch]
    base = {} if batch is None else {batch: _BATCH}
    if not others:
        yield base
        return
    for size in _SIZES:
        yield {**base, **dict.fromkeys(others, size)}
