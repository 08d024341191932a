"""Rewrites for ONNX Runtime's CPU provider, where one node is slower than what it stands for."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir


def spell_out_elu(model: ir.Model) -> bool:
    """Write `Elu` as `Max(x, Exp(Clip(x)) - 1)`.

    Though ONNX Runtime then passes over the numbers four times, it is quicker: for 0.6 to 0.8 million of them on one
    core 0.9 to 1.3 ns each, against 2.2 to 2.9 for `Elu` and slightly more for `Celu` (1.31.1, AVX2). For tens of MB,
    where memory is the limit, it is 1.8 against 2.2.

    Before: any model. After: no float32 `Elu` with alpha 1 (`exp(x) - 1` lies above `x`, so that `Max` chooses it below
    zero, where alone `Clip` leaves it; with a larger alpha it would not always); infinities and NaN come out as
    before. Returns whether there was any.
    """
    nodes = [node for node in model.graph if _is_plain_elu(node)]
    if not nodes:
        return False
    inner = [value for node in model.graph for value in node.outputs]
    taken = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values(), *inner)}

    def named(node: ir.Node, stem: str, like: ir.Value | None = None) -> ir.Node:
        name = next(name for n in itertools.count(1) if (name := f"{stem}_{n}" if n > 1 else stem) not in taken)
        taken.add(name)
        (result,) = node.outputs
        node.name, result.name, result.dtype = f"node_{name}", name, ir.DataType.FLOAT
        result.shape = ir.Shape(()) if like is None else like.shape
        return node

    zero, one = (
        named(ir.node("Constant", [], attributes={"value": ir.tensor(np.array(number, np.float32))}), name)
        for number, name in ((0.0, "elu_zero"), (1.0, "elu_one"))
    )
    model.graph.insert_before(next(iter(model.graph)), [zero, one])
    for node in nodes:
        (x,), (result,) = node.inputs, node.outputs
        below = named(ir.node("Clip", [x, None, zero.outputs[0]]), f"{result.name}_below", result)
        power = named(ir.node("Exp", below.outputs), f"{result.name}_power", result)
        less = named(ir.node("Sub", [power.outputs[0], one.outputs[0]]), f"{result.name}_less", result)
        larger = named(ir.node("Max", [x, less.outputs[0]]), f"{result.name}_larger", result)
        model.graph.insert_after(node, [below, power, less, larger])
        name = result.name
        ir.convenience.replace_all_uses_with(result, larger.outputs[0], replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        larger.outputs[0].name = name
    return True


def _is_plain_elu(node: ir.Node) -> bool:
    alpha = node.attributes.get("alpha")
    is_plain = node.op_type == "Elu" and node.domain == "" and (alpha is None or alpha.as_float() == 1.0)
    return is_plain and node.outputs[0].dtype == ir.DataType.FLOAT
