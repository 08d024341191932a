"""The formulas of what is combined, as nodes of the batched graph.

Safe for logits of +-1e4, minus infinity in a masked class, one member and equal members: probabilities are averaged
as logarithms, `p log p` is 0 where p is, and the mutual information is the mean over the members of
`sum_c p_kc (log p_kc - log p_c)`, whose terms are exactly 0 where members agree: H - E, subtracted term by term.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import fx

from ensexport.emission import percent_of

aten = torch.ops.aten

_LOWEST = -1e30  # stands for minus infinity where it is multiplied by 0
_INT64 = torch.iinfo(torch.int64)
_TIE = 1e-6  # of the sum of the weights: closer to one half than this is one half


class Combiner:
    """Writes what one output of the model becomes; equal calls are one node, so that results share their steps.

    Args:
        call: Adds a node, as `GraphBuilder.call`.
        constant: Adds a constant by name.
        members: The members' outputs, N on `member_axis`.
        member_axis: Where N stands.
        class_axis: Where the classes stand in one member's output, from 0.
        weights: Nodes of shape `(N,)`, 0 or more; None for all alike. A member whose weight is 0 is left out, be it
            NaN or Inf. If all are 0, means are NaN.
    """

    def __init__(
        self,
        *,
        call: Callable[..., fx.Node],
        constant: Callable[[str, torch.Tensor], fx.Node],
        members: fx.Node,
        member_axis: int,
        class_axis: int,
        weights: fx.Node | None,
    ) -> None:
        value: torch.Tensor = members.meta["val"]
        self.call = call
        self.constant = constant
        self.members = members
        self.axis = member_axis
        self.class_axis = class_axis
        self.stacked_class_axis = class_axis + (class_axis >= member_axis)
        self.given = weights
        self.dtype = value.dtype
        self.wide_dtype = _wide(value.dtype)
        self.rank = value.dim()
        self.n_members = int(value.shape[member_axis])

    def result(self, name: str) -> fx.Node:
        """The node of a name that `emission` knows, in the dtype of the members' output, batch first."""
        percent = percent_of(name)
        node: fx.Node = getattr(self, f"_{name}")() if percent is None else self._quantile(percent)
        return self._cast(node, self.dtype)

    # -- the members -------------------------------------------------------------------------------

    def _cast(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        return node if node.meta["val"].dtype == dtype else self.call(aten._to_copy.default, node, dtype=dtype)

    def _wide(self) -> fx.Node:
        """The members' outputs in the dtype of the arithmetic."""
        return self._cast(self.members, self.wide_dtype)

    def _filled(self, node: fx.Node, value: float) -> fx.Node:
        """A tensor with members on their axis, and `value` in those that are left out."""
        if self.given is None:
            return node
        left_out = self._along_members(self.call(aten.le.Scalar, self.given, 0))
        if value == _INT64.min:  # TorchScript cannot write this number: it reads the digits before the sign
            return self.call(aten.where.self, left_out, self.constant("lowest_int64", torch.tensor([value])), node)
        return self.call(aten.masked_fill.Scalar, node, left_out, value)

    def _values(self) -> fx.Node:
        """The members' outputs, 0 for those that are left out."""
        return self._filled(self._wide(), 0)

    # -- weights -----------------------------------------------------------------------------------

    def _along_members(self, node: fx.Node) -> fx.Node:
        """`(N,)` as it broadcasts against the members' outputs."""
        shape = [1] * self.rank
        shape[self.axis] = self.n_members
        return self.call(aten.reshape.default, node, shape) if self.rank > 1 else node

    def _weights(self) -> fx.Node:
        """The weights as shares of the largest: no sum of them overflows, and equal ones are exactly 1."""
        assert self.given is not None
        weights = self.call(aten.clamp.default, self._cast(self.given, self.wide_dtype), 0)
        return self.call(aten.div.Tensor, weights, self.call(aten.amax.default, weights, [0]))

    def _total(self) -> fx.Node:
        return self.call(aten.sum.dim_IntList, self._weights(), [0])

    def _average(self, node: fx.Node) -> fx.Node:
        """The weighted mean over the members: a sum and a division, so that equal ones average to themselves."""
        if self.given is None:
            return self.call(aten.div.Scalar, self._sum(node), self.n_members)
        weighted = self.call(aten.mul.Tensor, node, self._along_members(self._weights()))
        return self.call(aten.div.Tensor, self._sum(weighted), self._total())

    def _sum(self, node: fx.Node) -> fx.Node:
        return self.call(aten.sum.dim_IntList, node, [self.axis])

    def _behind(self, node: fx.Node) -> fx.Node:
        """A combined tensor as it broadcasts against the members' outputs."""
        return self.call(aten.unsqueeze.default, node, self.axis)

    # -- any output --------------------------------------------------------------------------------

    def _mean(self) -> fx.Node:
        return self._average(self._values())

    def _var(self) -> fx.Node:
        apart = self.call(aten.sub.Tensor, self._values(), self._behind(self._mean()))
        return self._average(self.call(aten.mul.Tensor, apart, apart))

    def _std(self) -> fx.Node:
        return self.call(aten.sqrt.default, self._var())

    def _min(self) -> fx.Node:
        return self.call(aten.amin.default, self._filled(self._wide(), self._extreme(1)), [self.axis])

    def _max(self) -> fx.Node:
        return self.call(aten.amax.default, self._filled(self._wide(), self._extreme(-1)), [self.axis])

    def _extreme(self, sign: int) -> float | int:
        if self.wide_dtype.is_floating_point:
            return sign * float("inf")
        info = torch.iinfo(self.wide_dtype)
        return info.max if sign > 0 else info.min

    def _median(self) -> fx.Node:
        ordered = self.call(aten.sort.default, self._values(), self.axis)
        values = self.call(operator.getitem, ordered, 0)
        if self.given is None:
            middle = ((self.n_members - 1) // 2, self.n_members // 2)
            lower, upper = (self.call(aten.select.int, values, self.axis, index) for index in middle)
        else:
            reached = self._reached(self.call(operator.getitem, ordered, 1))
            total = self._total()
            lower, upper = (
                self._first(values, self.call(aten.lt.Tensor, reached, self.call(aten.mul.Scalar, total, share)))
                for share in (0.5 - _TIE, 0.5 + _TIE)
            )
        return lower if lower is upper else self._half(lower, upper)

    def _quantile(self, percent: int) -> fx.Node:
        values = self.call(operator.getitem, self.call(aten.sort.default, self._wide(), self.axis), 0)
        place, rest = divmod((self.n_members - 1) * percent, 100)
        lower = self.call(aten.select.int, values, self.axis, place)
        if not rest:
            return lower
        upper = self.call(aten.select.int, values, self.axis, place + 1)
        return self.call(
            aten.add.Tensor,
            self.call(aten.mul.Scalar, lower, (100 - rest) / 100),
            self.call(aten.mul.Scalar, upper, rest / 100),
        )

    def _reached(self, order: fx.Node) -> fx.Node:
        """The sum of the weights up to each value, in the values' order."""
        weights = self.call(aten.index.Tensor, self._weights(), [order])
        return self.call(aten.cumsum.default, weights, self.axis)

    def _first(self, values: fx.Node, is_before: fx.Node) -> fx.Node:
        """The smallest value that is not before."""
        rest = self.call(aten.masked_fill.Scalar, values, is_before, float("inf"))
        return self.call(aten.amin.default, rest, [self.axis])

    def _half(self, lower: fx.Node, upper: fx.Node) -> fx.Node:
        """The middle, each halved first: no sum overflows."""
        return self.call(
            aten.add.Tensor, self.call(aten.mul.Scalar, lower, 0.5), self.call(aten.mul.Scalar, upper, 0.5)
        )

    # -- class scores ------------------------------------------------------------------------------

    def _log_p_k(self) -> fx.Node:
        return self.call(aten.log_softmax.int, self._values(), self.stacked_class_axis)

    def _p_k(self) -> fx.Node:
        return self.call(aten.exp.default, self._log_p_k())

    def _finite(self, node: fx.Node) -> fx.Node:
        return self.call(aten.clamp.default, node, _LOWEST)

    def _probs(self) -> fx.Node:
        return self._average(self._p_k())

    def _logprobs(self) -> fx.Node:
        """The logarithm of the average, from the largest on: it neither under- nor overflows."""
        logs = self._filled(self._log_p_k(), _LOWEST)
        largest = self._finite(self.call(aten.amax.default, logs, [self.axis]))
        shares = self.call(aten.exp.default, self.call(aten.sub.Tensor, logs, self._behind(largest)))
        return self.call(aten.add.Tensor, largest, self.call(aten.log.default, self._average(shares)))

    def _vote(self) -> fx.Node:
        values = self._values()
        size = int(values.meta["val"].shape[self.stacked_class_axis])
        shape = [1] * self.rank
        shape[self.stacked_class_axis] = size
        classes = self.call(aten.reshape.default, self.constant(f"classes_{size}", torch.arange(size)), shape)
        winner = self.call(aten.argmax.default, values, self.stacked_class_axis, True)
        return self._average(self._cast(self.call(aten.eq.Tensor, winner, classes), self.wide_dtype))

    def _entropy(self) -> fx.Node:
        return self._minus_p_log_p(self._probs(), self._logprobs(), self.class_axis)

    def _expected_entropy(self) -> fx.Node:
        return self._average_of_members(self._minus_p_log_p(self._p_k(), self._log_p_k(), self.stacked_class_axis))

    def _minus_p_log_p(self, p: fx.Node, log_p: fx.Node, axis: int) -> fx.Node:
        products = self.call(aten.mul.Tensor, p, self._finite(log_p))
        return self.call(aten.neg.default, self.call(aten.sum.dim_IntList, products, [axis]))

    def _mutual_information(self) -> fx.Node:
        apart = self.call(aten.sub.Tensor, self._finite(self._log_p_k()), self._behind(self._finite(self._logprobs())))
        products = self.call(aten.mul.Tensor, self._p_k(), apart)
        divergence = self.call(aten.sum.dim_IntList, products, [self.stacked_class_axis])
        return self.call(aten.clamp.default, self._average_of_members(divergence), 0)

    def _average_of_members(self, node: fx.Node) -> fx.Node:
        """The average of a tensor without the class axis."""
        axis = self.axis - (self.class_axis < self.axis)
        reduced = Combiner(
            call=self.call,
            constant=self.constant,
            members=node,
            member_axis=axis,
            class_axis=0,
            weights=self.given,
        )
        return reduced._average(node)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic: float32, float64 for float64; integers as ONNX Runtime compares them."""
    if dtype.is_floating_point:
        return torch.float64 if dtype is torch.float64 else torch.float32
    return torch.int64 if dtype is torch.int64 else torch.int32
