"""What the engine knows of each value: the physical tensor and where its members are.

Shapes are written for a value whose member-side ("logical") shape is `(B, C, H)`, with N members:

| layout | physical shape | when |
| --- | --- | --- |
| shared | `(B, C, H)` | the same for all members |
| `Stacked(0)` | `(N, B, C, H)` | the plain form; every rule can ask for it |
| `Stacked(1)` | `(B, N, C, H)` | on the way between the other two |
| `Folded(1)` | `(B, N*C, H)` | members side by side in dim 1, member 0 first: convs, wide linears |
| `Rows()` | `(N, B*C, H)` | token models: what a batched matmul takes |
| `Branches(...)` | N times `(B, C, H)` | between ops that run once a member |
| weight | one tensor a member | not in the graph yet: a function of one member's state |

`Folded` is what keeps a convnet free of transposes and lets one wide `Gemm` serve a shared input; `Rows` keeps a
transformer free of reshapes between its linear layers, norms and residual sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True)
class SharedLayout:
    """The same tensor for all members."""


@dataclass(frozen=True)
class Stacked:
    """The members have a dimension of their own: physical dim `axis`."""

    axis: int


@dataclass(frozen=True)
class Folded:
    """The members are merged, member-major, into logical dim `dim`."""

    dim: int


@dataclass(frozen=True)
class Rows:
    """The members in front, all logical dims but the last merged behind them; for values of rank 3 and more."""


@dataclass(frozen=True)
class Branches:
    """A tensor of its own for each member, in the members' order; `Value.node` is the first."""

    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True)
class WeightLayout:
    """A tensor computed from one member's state alone; `is_shared` if it is equal for all members."""

    is_shared: bool


SHARED = SharedLayout()
ROWS = Rows()
Layout = SharedLayout | Stacked | Folded | Rows | Branches | WeightLayout


@dataclass(frozen=True)
class Value:
    """A tensor of the member graph as it stands in the batched graph.

    Attributes:
        node: The physical tensor: a node of the batched graph, or of the weight graph for a weight.
        layout: Where the members are.
        member: The member graph's fake tensor: the logical shape and dtype.
    """

    node: fx.Node
    layout: Layout
    member: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """Logical shape, as one member sees it; entries may be symbolic."""
        return self.member.shape

    @property
    def rank(self) -> int:
        """Logical rank."""
        return self.member.dim()

    @property
    def is_shared(self) -> bool:
        """True for an activation that is the same for all members."""
        return isinstance(self.layout, SharedLayout)

    @property
    def is_weight(self) -> bool:
        """True while the value is still a function of one member's state."""
        return isinstance(self.layout, WeightLayout)

    @property
    def is_per_member(self) -> bool:
        """True if members may differ."""
        return not self.is_shared and self.layout != WeightLayout(is_shared=True)


def same_size(a: Any, b: Any) -> bool:
    """Are two sizes known to be equal, without adding a guard on a symbolic one?"""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(expression(a) == expression(b))


def expression(size: Any) -> Any:
    """The sympy expression of a symbolic size, or the int itself."""
    return size.node.expr if isinstance(size, torch.SymInt) else size
