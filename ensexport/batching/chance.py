"""Sizes that are 1 by chance: an example so small that a later dim has size 1 only because of it.

`torch.export` takes every size of 1 for a constant, and for a size that is computed (`samples // 160`) it does so
without a word: the graph would be right for that example alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ensexport.stacking.baseline import Feed, run_member

Shapes = Sequence[torch.Size]


def shapes_of_run(module: nn.Module, feed: Feed) -> Shapes:
    """Run a member and return the shape of every tensor that an op returns, in order."""
    mode = _Shapes()
    with mode:
        run_member(module, feed)
    return mode.seen


def is_one_by_chance(shapes: Shapes, larger: Shapes) -> bool:
    """Does a dim have size 1 in one run and another size in the run on larger inputs?

    Args:
        shapes: Of the run on the example.
        larger: Of the run on larger inputs; other ops than in the first say nothing.
    """
    if [len(shape) for shape in shapes] != [len(shape) for shape in larger]:
        return False
    pairs = [pair for old, new in zip(shapes, larger, strict=True) for pair in zip(old, new, strict=True)]
    return any(1 in pair and pair[0] != pair[1] for pair in pairs)


class _Shapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen += [leaf.shape for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        return result
