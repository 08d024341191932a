"""The loop over the members: the oracle that every artifact is judged against. Deliberately plain.

One member at a time is built, moved to the dtype asked for, run on every feed, and dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import nn

from ensexport.stacking.binding import bind_inputs
from ensexport.stacking.outputs import flatten_outputs

Feed = dict[str, torch.Tensor]
"""The inputs of ONE member, by name, in the file's order."""


class MemberSource(Protocol):
    """Anything that can rebuild its members: loaded checkpoints, or a stacked ensemble."""

    def __len__(self) -> int:
        """N."""

    def build(self, member_index: int) -> nn.Module:
        """Return one member in eval mode with its own weights."""


def run_member(module: nn.Module, feed: Feed, *, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Run one member on one feed and return its named outputs.

    Args:
        module: The member; moved to `dtype` in place when one is given.
        feed: Its inputs; floating ones are cast to `dtype` likewise. They are copied, not written to.
        dtype: None keeps weights and inputs as they are; float64 is what judging uses. Complex tensors become the
            complex dtype of that precision.

    Raises:
        ModelInputError: The inputs do not fit the model's `forward`.
        ModelOutputError: The model returns something that is not made of tensors.
    """
    tensors = [_as_dtype(tensor, dtype).clone() for tensor in feed.values()]  # a model may write to its inputs
    if dtype is not None:
        # Not `.to(dtype)`, which would drop the imaginary part of complex weights.
        module = module._apply(lambda tensor: _as_dtype(tensor, dtype))  # type: ignore[no-untyped-call]
    with torch.no_grad(), _default_dtype(dtype):
        return flatten_outputs(bind_inputs(module, list(feed)).call(module, tensors))


def run_members(
    source: MemberSource, feeds: Sequence[Sequence[Feed]], *, dtype: torch.dtype | None = None
) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Yield, member by member, its outputs on each of its feeds.

    Args:
        source: The members.
        feeds: `feeds[k]` are the feeds of member k; the same list for all when every input is shared.
        dtype: As for `run_member`.
    """
    for member_index in range(len(source)):
        module = source.build(member_index)
        yield [run_member(module, feed, dtype=dtype) for feed in feeds[member_index]]


def _as_dtype(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    if dtype is None or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    return tensor.to(dtype.to_complex() if tensor.is_complex() else dtype)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Make `torch.zeros(...)` and friends inside a model follow the dtype it is judged in."""
    before = torch.get_default_dtype()
    if dtype is not None:
        torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
