"""Splits written as `Split`, where torch's exporter (2.13) writes a sequence of tensors and takes its elements.

A sequence lives on the CPU: on a GPU each would be copied there and back, CUDA graphs cannot capture it, and TensorRT
has none. ONNX Runtime rewrites some of them, not those whose parts go separate ways.
"""

from __future__ import annotations

import onnx_ir as ir


def split_in_place(model: ir.Model) -> bool:
    """Write a `SplitToSequence` whose parts are all taken by number as one `Split`.

    Before: any model. After: no `SplitToSequence` of known sizes feeds `SequenceAt` nodes with constant numbers alone.
    """
    modified = False
    for node in list(model.graph):
        if node.op_type != "SplitToSequence" or node.domain != "" or node.attributes.get_int("keepdims", 1) != 1:
            continue
        sizes, takers = _sizes(node), [use.node for use in node.outputs[0].uses()]
        numbers = [None if sizes is None else _number(taker, len(sizes)) for taker in takers]
        if sizes is None or not takers or node.outputs[0] in model.graph.outputs or None in numbers:
            continue
        lengths = ir.node("Constant", [], attributes={"value": ir.tensor(sizes, dtype=ir.DataType.INT64)})
        lengths.outputs[0].name = f"{node.outputs[0].name}_sizes"
        attributes = {"axis": node.attributes.get_int("axis", 0)}
        split = ir.node("Split", [node.inputs[0], lengths.outputs[0]], attributes=attributes, num_outputs=len(sizes))
        node.prepend([lengths, split])
        for number, part in enumerate(split.outputs):
            part.name = f"{node.outputs[0].name}_{number}"
        for taker, place in zip(takers, numbers, strict=True):
            assert place is not None
            _hand_over(model, taker, split.outputs[place])
        model.graph.remove(node, safe=True)
        modified = True
    return modified


def _sizes(node: ir.Node) -> list[int] | None:
    """The size of each part: given one by one, or one for all with what is left for the last."""
    source, given = node.inputs[0], None if len(node.inputs) < 2 else node.inputs[1]
    split = None if given is None else ir.convenience.get_const_tensor(given)
    if split is None or source is None:
        return None
    numbers = split.numpy()
    if numbers.ndim == 1:
        return [int(number) for number in numbers]
    length = None if source.shape is None else source.shape[node.attributes.get_int("axis", 0)]
    if not isinstance(length, int):
        return None
    size = int(numbers)
    return [min(size, length - start) for start in range(0, length, size)]


def _number(taker: ir.Node, parts: int) -> int | None:
    if taker.op_type != "SequenceAt" or taker.inputs[1] is None:
        return None
    number = ir.convenience.get_const_tensor(taker.inputs[1])
    return None if number is None else int(number.numpy()) % parts


def _hand_over(model: ir.Model, taker: ir.Node, part: ir.Value) -> None:
    """Give the users of a part, taken out of the sequence, the part itself; a graph output keeps its node's name."""
    result = taker.outputs[0]
    part.type, part.shape = part.type or result.type, part.shape or result.shape
    if result in model.graph.outputs:
        same = ir.node("Identity", [part])
        taker.prepend(same)
        index = list(model.graph.outputs).index(result)
        kept = same.outputs[0]
        kept.name, kept.shape, kept.type = result.name, result.shape, result.type
        result.name = f"{result.name}_taken"
        model.graph.outputs[index] = kept
        result.replace_all_uses_with(kept)
    else:
        result.replace_all_uses_with(part)
    model.graph.remove(taker, safe=True)
