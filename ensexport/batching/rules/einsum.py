"""Einstein sums as permute, reshape and matmul, two operands at a time; ONNX's own `Einsum` is never fused.

A weight goes to the right of its product, rearranged when packing, so that without a batch label it is a linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ensexport.batching.compose import compose
from ensexport.batching.context import Context
from ensexport.batching.equations import labels_of
from ensexport.batching.registry import rule
from ensexport.batching.value import Value, same_size

aten = torch.ops.aten
Labelled = tuple[Tensor, list[str]]


@rule(aten.einsum.default)
def einsum(ctx: Context, equation: str, operands: list[Value], *, path: Sequence[int] | None = None) -> Any:
    """Any equation but one that takes a diagonal (`ii->i`) or sums over a broadcast dim."""
    inputs, output = labels_of(equation, [value.rank for value in operands])
    sizes: dict[str, Any] = {}
    for labels, value in zip(inputs, operands, strict=True):
        if len(set(labels)) < len(labels):
            return None
        for label, size in zip(labels, value.shape, strict=True):
            if label in output:
                continue
            if not same_size(sizes.setdefault(label, size), size):
                return None
    order = path or [0, 1] * (len(operands) - 1)
    is_weight = [value.is_weight for value in operands]

    def contract_all(*tensors: Tensor) -> Tensor:
        terms = list(zip(tensors, inputs, is_weight, strict=True))
        for first, second in zip(order[::2], order[1::2], strict=True):
            picked = [terms.pop(index) for index in sorted((first, second), reverse=True)]
            right, left = sorted(picked, key=lambda term: term[2], reverse=True)
            wanted = {*output, *(label for term in terms for label in term[1])}
            tensor, labels = _contract(left[:2], right[:2], wanted)
            terms.append((tensor, labels, left[2] and right[2]))
        ((tensor, labels, _),) = terms
        tensor, labels = _summed((tensor, labels), set(output))
        return _arranged((tensor, labels), output)

    return compose(ctx, contract_all, *operands)


def _summed(term: Labelled, wanted: set[str]) -> Labelled:
    """Sum over the labels that nothing else has."""
    tensor, labels = term
    dims = [dim for dim, label in enumerate(labels) if label not in wanted]
    return (tensor.sum(dims), [label for label in labels if label in wanted]) if dims else term


def _arranged(term: Labelled, wanted: Sequence[str]) -> Tensor:
    tensor, labels = term
    order = [labels.index(label) for label in wanted]
    return tensor if order == sorted(order) else tensor.permute(order)


def _contract(left: Labelled, right: Labelled, wanted: set[str]) -> Labelled:
    """The product of two terms, summed over the labels that both have and nobody wants any more."""
    (x, x_labels), (y, y_labels) = _summed(left, wanted | set(right[1])), _summed(right, wanted | set(left[1]))
    batch = [label for label in x_labels if label in y_labels and label in wanted]
    inner = [label for label in x_labels if label in y_labels and label not in wanted]
    rows = [label for label in x_labels if label not in y_labels]
    columns = [label for label in y_labels if label not in x_labels]
    x, y = _arranged((x, x_labels), [*batch, *rows, *inner]), _arranged((y, y_labels), [*batch, *inner, *columns])
    n, r, i, c = len(batch), len(rows), len(inner), len(columns)
    if not inner or not (rows or columns):
        x = x[(..., *[None] * c)] if c else x
        y = y[(*[slice(None)] * n, *[None] * r)] if r else y
        product = x * y
        return product.sum(tuple(range(n, n + i))) if inner else product, [*batch, *rows, *columns]
    sizes = [a if same_size(b, 1) else b for a, b in zip(x.shape[:n], y.shape[:n], strict=True)]
    sizes += [*x.shape[n : n + r], *y.shape[n + i :]]
    x = x.flatten(n + r) if i > 1 else x
    y = y.flatten(n, n + i - 1) if i > 1 else y
    y = y.flatten(n + 1) if c > 1 else y if c else y.unsqueeze(-1)
    if batch:
        x = x.flatten(n, n + r - 1) if r > 1 else x if r else x.unsqueeze(n)
    product = x @ y
    is_done = c == 1 and (r == 1 or not batch)
    return product if is_done else product.reshape(sizes), [*batch, *rows, *columns]
