"""Sizes that are 1 by chance: an example so small that a later dim has size 1 only because of it.

`torch.export` takes every size of 1 for a constant, and for a size that is computed (`samples // 160`) it does so
without a word: the graph would be right for that example alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ensexport.stacking.baseline import Feed, run_member


@dataclass(frozen=True)
class Shapes:
    """What one run of a member made, in order: the shape of each tensor that an op or a sub-module returned."""

    ops: list[torch.Size] = field(default_factory=list)
    modules: list[torch.Size] = field(default_factory=list)


def shapes_of_run(module: nn.Module, feed: Feed) -> Shapes:
    """Run a member and note the shapes."""
    shapes = Shapes()
    hooks = [
        part.register_forward_hook(lambda _module, _args, result: shapes.modules.extend(_shapes_in(result)))
        for part in module.modules()
        if not isinstance(part, torch.jit.ScriptModule)
    ]
    try:
        with _Noting(shapes.ops):
            run_member(module, feed)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def is_one_by_chance(shapes: Shapes, larger: Shapes) -> bool:
    """Does a dim have size 1 in one run and another size in the run on larger inputs?

    With a size of 1 torch may take other kernels: then the sub-modules are compared alone. Where those differ too, such
    as in a loop over time, nothing is said.

    Args:
        shapes: Of the run on the example.
        larger: Of the run on larger inputs.
    """
    for old, new in ((shapes.ops, larger.ops), (shapes.modules, larger.modules)):
        if [len(shape) for shape in old] == [len(shape) for shape in new]:
            pairs = [pair for a, b in zip(old, new, strict=True) for pair in zip(a, b, strict=True)]
            return any(1 in pair and pair[0] != pair[1] for pair in pairs)
    return False


def _shapes_in(result: Any) -> list[torch.Size]:
    return [leaf.shape for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


class _Noting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, seen: list[torch.Size]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen += _shapes_in(result)
        return result
