"""Small rewrites of the exported ONNX model.

Each says what must hold before and what holds after, and returns whether it changed anything; each has its own test.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

_DATA_DEPENDENT = re.compile(r"\bu\d+\b")


def rename(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str], symbols: Mapping[str, str]) -> bool:
    """Give inputs, outputs and dynamic dims the user's names.

    Before: the exporter's names (`s77`, `add_1`); a buffer may be called like an output, or like a node's value. After:
    the graph's inputs and outputs are called as given, in order, no two values share a name, and every dim
    expression is written in the user's dims. An initializer that had to give way has its old name in
    `meta["packed_name"]`. Where a size depends on values the shape is left out: each member has its own under one name,
    and ONNX Runtime gives values of equal shape the same memory.
    """
    taken = {*inputs, *outputs, *symbols.values()}
    ends = {*model.graph.inputs, *model.graph.outputs}
    for value in _values(model):
        if value not in ends and value.name in taken:
            _rename_value(model, value, taken)
        if value not in ends and value.name is not None:
            taken.add(value.name)
    for node in model.graph:
        node.name = f"node_{node.name}" if node.name in taken else node.name
    for value, name in zip(model.graph.inputs, inputs, strict=True):
        value.name = name
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        value.name = name
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, symbols)) + r")\b") if symbols else None
    for value in _values(model):
        if value.shape is None or pattern is None:
            continue
        if any(_DATA_DEPENDENT.search(str(dim)) for dim in value.shape):
            value.shape = None
            continue
        value.shape = ir.Shape(
            pattern.sub(lambda match: symbols[match[1]], dim.value)
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None
            else dim
            for dim in value.shape
        )
    return True


def _rename_value(model: ir.Model, value: ir.Value, taken: set[str]) -> None:
    old = value.name
    assert old is not None
    new = next(
        name for number in itertools.count(1) if (name := f"{old}_value{number if number > 1 else ''}") not in taken
    )
    if model.graph.initializers.get(old) is not value:
        value.name = new
        return
    del model.graph.initializers[old]
    value.meta["packed_name"] = old
    value.name = new
    if value.const_value is not None:
        value.const_value.name = new
    model.graph.initializers[new] = value


def constant_reshapes(model: ir.Model) -> bool:
    """Make the shape of every `Reshape` a constant where one can say it with 0 (copy) and one -1 (infer).

    Before: shapes may be computed by Shape, Gather and Concat nodes, which CUDA graphs cannot capture. After: they
    are computed only where two sizes are unknown in new places. The computing nodes become unused.
    """
    modified = False
    for node in model.graph:
        if node.op_type not in ("Reshape", "Expand") or node.domain != "":
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source is None or source.shape is None or result.shape is None:
            continue
        if node.inputs[1] is not None and ir.convenience.get_const_tensor(node.inputs[1]) is not None:
            continue
        entries = _reshape_entries(source.shape, result.shape) if node.op_type == "Reshape" else None
        if entries is None:
            continue
        _set_reshape(node, source, entries)
        modified = True
    return modified


def _reshape_entries(source: ir.Shape, target: ir.Shape) -> list[int] | None:
    entries: list[int] = []
    for index, dim in enumerate(target):
        if isinstance(dim, int):
            if dim == 0:
                return None
            entries.append(dim)
        elif dim.value is None:
            return None
        elif index < len(source) and str(source[index]) == str(dim):
            entries.append(0)
        else:
            entries.append(-1)
    return entries if entries.count(-1) <= 1 else None


def collapse_reshapes(model: ir.Model) -> bool:
    """Join a `Reshape` with the `Reshape` before it, and drop one that changes nothing.

    Before: the batching may split and merge the same dims on the way from one op to the next. After: no constant
    `Reshape` reads another's result where its shape can be said from there, and none has equal input and output shape.
    """
    modified = False
    for node in list(model.graph):
        if not _is_constant_reshape(node):
            continue
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None
        while (before := source.producer()) is not None and _is_constant_reshape(before):
            further = before.inputs[0]
            if further is None or further.shape is None or result.shape is None:
                break
            entries = _reshape_entries(further.shape, result.shape)
            if entries is None:
                break
            _set_reshape(node, further, entries)
            source, modified = further, True
        is_same = source.shape is not None and result.shape is not None and _texts(source.shape) == _texts(result.shape)
        is_output = result in model.graph.outputs
        if is_same and (not is_output or (source.producer() is not None and len(source.uses()) == 1)):
            _bypass(model, node, source)
            modified = True
    return modified


def gather_in_place(model: ir.Model) -> bool:
    """Let a `Gather` take its indices as they are, instead of flattened and the result reshaped back.

    Before: `index_select` takes a vector of indices. After: no `Gather` reads a flattened index tensor whose
    dims a `Reshape` puts back right behind it.
    """
    modified = False
    for node in list(model.graph):
        if node.op_type != "Gather" or node.domain != "":
            continue
        data, indices, result = node.inputs[0], node.inputs[1], node.outputs[0]
        while indices is not None and _is_flattening(indices.producer()):
            indices = indices.producer().inputs[0]  # type: ignore[union-attr]
        if indices is None or indices.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
            continue
        if indices is node.inputs[1] or data is None or result in model.graph.outputs:
            continue
        users = [use.node for use in result.uses()]
        if indices.shape is None or data.shape is None or any(user.op_type != "Reshape" for user in users):
            continue
        axis = node.attributes.get_int("axis", 0)
        expected = [*_texts(data.shape)[:axis], *_texts(indices.shape), *_texts(data.shape)[axis + 1 :]]
        shapes = [user.outputs[0].shape for user in users]
        is_output = any(user.outputs[0] in model.graph.outputs for user in users)
        if (
            not users
            or (is_output and len(users) > 1)
            or any(shape is None or _texts(shape) != expected for shape in shapes)
        ):
            continue
        node.replace_input_with(1, indices)
        result.shape = ir.Shape(shapes[0])  # type: ignore[arg-type]
        for user in users:
            _bypass(model, user, result)
        modified = True
    return modified


def _is_flattening(node: ir.Node | None) -> bool:
    """A reshape into one dim, or the cast to 64 bits that the exporter puts on indices."""
    if node is not None and node.op_type == "Cast" and node.domain == "":
        return node.attributes.get_int("to", 0) == ir.DataType.INT64
    if node is None or not _is_constant_reshape(node):
        return False
    shape = ir.convenience.get_const_tensor(node.inputs[1])  # type: ignore[arg-type]
    return shape is not None and shape.numpy().tolist() == [-1]


def _bypass(model: ir.Model, node: ir.Node, source: ir.Value) -> None:
    """Give the users of a node that changes nothing, and the graph's output, what it reads."""
    result = node.outputs[0]
    if result not in model.graph.outputs:
        result.replace_all_uses_with(source)
        return
    # The graph's output keeps its name: the node before writes it directly.
    name, result.name = result.name, f"{result.name}_before"
    index = list(model.graph.outputs).index(result)
    source.name, source.shape, source.type = name, result.shape, result.type
    model.graph.outputs[index] = source


def _texts(shape: ir.Shape) -> list[str]:
    return [str(dim) for dim in shape]


def _is_constant_reshape(node: ir.Node) -> bool:
    if node.op_type != "Reshape" or node.domain != "" or node.inputs[1] is None:
        return False
    return ir.convenience.get_const_tensor(node.inputs[1]) is not None


def _set_reshape(node: ir.Node, source: ir.Value, entries: Sequence[int]) -> None:
    values = ir.tensor(np.array(entries, dtype=np.int64))
    constant = ir.node("Constant", [], attributes={"value": values}, num_outputs=1)
    constant.outputs[0].name = f"{node.outputs[0].name}_shape"
    node.prepend(constant)
    node.replace_input_with(0, source)
    node.replace_input_with(1, constant.outputs[0])
    node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def remove_identities(model: ir.Model) -> bool:
    """Bypass `Identity` nodes.

    Before: the exporter writes one for each alias or clone. After: none is left but those whose value is a graph
    output made of a graph input or initializer.
    """
    modified = False
    outputs = set(model.graph.outputs)
    for node in list(model.graph):
        if node.op_type != "Identity" or node.domain != "":
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source is None or result in outputs:
            continue
        result.replace_all_uses_with(source)
        model.graph.remove(node, safe=True)
        modified = True
    return modified


def sizes_in_place(model: ir.Model) -> bool:
    """Let what joins sizes to a shape read them as vectors of one.

    Before: the exporter squeezes each size that it reads to a scalar, and reshapes it back to join it with others.
    After: no `Reshape` to one element reads the `Squeeze` of a size.
    """
    modified = False
    for node in list(model.graph):
        if not _is_constant_reshape(node):
            continue
        squeeze = node.inputs[0].producer()  # type: ignore[union-attr]
        shape = ir.convenience.get_const_tensor(node.inputs[1])  # type: ignore[arg-type]
        if (
            squeeze is None
            or squeeze.op_type != "Squeeze"
            or shape is None
            or shape.numpy().tolist() not in ([1], [-1])
        ):
            continue
        source = squeeze.inputs[0]
        size = None if source is None else source.producer()
        if source is None or size is None or size.op_type != "Shape" or node.outputs[0] in model.graph.outputs:
            continue
        start, end = size.attributes.get_int("start", 0), size.attributes.get_int("end", None)
        if end is None or end - start != 1:
            continue
        _bypass(model, node, source)
        modified = True
    return modified


def cast_constants(model: ir.Model) -> bool:
    """Give constants the dtype they are cast to.

    Before: a form that holds for every dtype casts its numbers to that of an argument (`CastLike`), which ONNX Runtime
    expands too late to fold: it computes the cast in every call, and fuses no scale into the product behind it. After:
    no `CastLike` of a `Constant` is left where the dtype is known.
    """
    modified = False
    for node in list(model.graph):
        if node.op_type != "CastLike" or node.domain != "":
            continue
        source, example = node.inputs[0], node.inputs[1]
        if source is None or example is None or example.dtype is None:
            continue
        producer = source.producer()
        if producer is None or producer.op_type != "Constant" or "value" not in producer.attributes:
            continue
        numbers = producer.attributes["value"].as_tensor().numpy().astype(example.dtype.numpy())
        constant = ir.node("Constant", [], attributes={"value": ir.tensor(numbers)}, num_outputs=1)
        constant.outputs[0].name = f"{node.outputs[0].name}_cast"
        constant.outputs[0].dtype, constant.outputs[0].shape = example.dtype, ir.Shape(numbers.shape)
        node.prepend(constant)
        _bypass(model, node, constant.outputs[0])
        modified = True
    return modified


def remove_unused(model: ir.Model) -> bool:
    """Remove nodes and initializers that nothing reads. After: every node leads to an output."""
    modified = False
    kept = set(model.graph.outputs)
    for node in reversed(list(model.graph)):
        if not any(output in kept or output.uses() for output in node.outputs):
            model.graph.remove(node, safe=True)
            modified = True
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and value not in kept:
            del model.graph.initializers[name]
            modified = True
    return modified


def strip_debug_info(model: ir.Model) -> bool:
    """Drop the exporter's notes: they hold absolute paths of the machine that packed, and change the bytes.

    After: no metadata and no doc string on model, graph, nodes or values.
    """
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    for function in model.functions.values():
        function.metadata_props.clear()
        function.doc_string = None
    return True


def _values(model: ir.Model) -> list[ir.Value]:
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph:
        values.extend(node.outputs)
    return list(dict.fromkeys(values))
