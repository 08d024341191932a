"""Equations of `einsum`: the label of each dim, with `...` spelled out."""

from __future__ import annotations

import string
from collections.abc import Sequence

import torch
from torch import fx

aten = torch.ops.aten


def spell_out(graph: fx.Graph) -> bool:
    """Give every dim of every `einsum` a letter and say the result.

    Before: `...` may stand for dims of other ranks in other operands, which ONNX Runtime refuses where one of them is
    dynamic. After: no equation has `...`; returns whether one had.
    """
    modified = False
    for node in graph.nodes:
        if node.target is not aten.einsum.default or "..." not in node.args[0]:
            continue
        inputs, output = labels_of(node.args[0], [operand.meta["val"].dim() for operand in node.args[1]])
        used = {label for labels in inputs for label in labels if label in string.ascii_letters}
        free = (letter for letter in string.ascii_letters if letter not in used)
        hidden = sorted({label for labels in inputs for label in labels} - used)
        letters = {label: label for label in used} | dict(zip(hidden, free, strict=False))
        terms = ["".join(letters[label] for label in labels) for labels in (*inputs, output)]
        node.args = (",".join(terms[:-1]) + "->" + terms[-1], *node.args[1:])
        modified = True
    return modified


def labels_of(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """The dims' labels of each operand and of the result; `...` becomes labels counted from the right.

    Args:
        equation: As `torch.einsum` takes it.
        ranks: Rank of each operand.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    longest = max([rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)], default=0)

    def split(term: str, n_hidden: int) -> list[str]:
        before, dots, after = term.partition("...")
        return [*before, *(f"...{index}" for index in range(n_hidden, 0, -1) if dots), *after]

    inputs = [split(term, rank - len(term.replace("...", ""))) for term, rank in zip(terms, ranks, strict=True)]
    if not arrow:
        named = "".join(terms).replace("...", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(named) if named.count(c) == 1))
    return inputs, split(right, longest)
