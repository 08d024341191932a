"""A batched graph in another dtype than its members: products in float16, norms in float32.

Contract: before, a batched graph as `batch_graph` wrote it; after, one of the same values, shapes and order of inputs
and outputs, whose weights, arithmetic, inputs and outputs have the dtypes of a `Conversion`.

The rules are those of torch's autocast, made once and kept in the graph, but for one point: what is not known to be
safe in 16 bits runs in float32.

- Products (`_PRODUCTS`) run in the low dtype if one of their operands has it: the members' parameters do, and what was
  made of them. So the angles of a rotary embedding, made of positions and of a table, stay in float32; and so does
  attention under a mask of numbers made in float32, whose largest have no place in float16.
- Norms, softmax and averages (`_RETURNING`) run in float32 and return what they were given.
- Other ops that move numbers or treat them one by one (`_KEEPING`) run in the dtype of their operands, in float32 if
  one of these is; so do those with a number beyond the low dtype's range. Tensors that are filled with one number take
  the dtype of the rest.
- All others run in float32.

Source: torch 2.13, aten/src/ATen/autocast_mode.h (AT_FORALL_FP32, AT_FORALL_LOWER_PRECISION_FP).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves, tree_map

from ensexport.batching.builder import GraphBuilder
from ensexport.batching.engine import BatchedGraph
from ensexport.batching.source import source_line
from ensexport.batching.weights import PackedWeight
from ensexport.dtypes import Conversion
from ensexport.errors import ExportError

aten = torch.ops.aten

_PRODUCTS = {
    *("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("linear", "mm", "bmm", "matmul", "mv", "addmm", "addmv", "baddbmm", "addbmm", "einsum", "bilinear", "dot"),
    *("scaled_dot_product_attention", "lstm", "gru", "rnn_tanh", "rnn_relu"),
    *("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
}
_RETURNING = {
    *("layer_norm", "native_layer_norm", "batch_norm", "instance_norm", "group_norm", "native_group_norm", "rms_norm"),
    *("_native_batch_norm_legit_no_training", "softmax", "_softmax"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
}
_MOVING = {
    *("alias", "clone", "contiguous", "detach", "dropout", "lift_fresh_copy", "permute", "transpose", "t", "numpy_T"),
    *("movedim", "flip", "roll", "swapaxes", "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze"),
    *("unsqueeze", "expand", "expand_as", "broadcast_to", "view_as", "split", "split_with_sizes", "chunk", "unbind"),
    *("slice", "select", "narrow", "repeat", "repeat_interleave", "tile", "index", "index_select", "gather"),
    *("embedding", "diagonal", "tril", "triu", "unfold", "im2col", "pixel_shuffle", "pixel_unshuffle"),
    *("channel_shuffle", "constant_pad_nd", "pad", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
    *("replication_pad1d", "replication_pad2d", "replication_pad3d", "upsample_nearest1d", "upsample_nearest2d"),
    *("upsample_nearest3d", "select_scatter", "slice_scatter", "as_strided"),
}
_KEEPING = _MOVING | {
    *("cat", "stack", "concat", "where", "masked_fill", "index_put", "scatter", "index_copy", "copy"),
    *("add", "sub", "rsub", "mul", "div", "neg", "abs", "maximum", "minimum", "clamp", "clamp_min", "clamp_max"),
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "sigmoid", "tanh", "hardswish"),
    *("hardsigmoid", "hardtanh", "mish", "prelu", "glu", "threshold", "lerp", "addcmul"),
    *("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "logical_not", "logical_and", "logical_or"),
    *("max", "min", "amax", "amin", "argmax", "argmin", "topk", "sort", "argsort", "aminmax"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices"),
    *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
}
_CASTS = {"to", "_to_copy", "type_as", "float"}
_FILLED = {
    *("zeros", "ones", "full", "scalar_tensor", "zeros_like", "ones_like", "full_like"),
    *("new_zeros", "new_ones", "new_full"),
}


def convert(batched: BatchedGraph, conversion: Conversion) -> BatchedGraph:
    """Return the graph with the dtypes of `conversion`; the one given is not changed."""
    return _Converter(batched, conversion).converted()


def dtype_of(state: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> torch.dtype:
    """The dtype that most of the weights' elements have; of the inputs where there are no weights.

    Args:
        state: The members' tensors, real or fake.
        inputs: Their inputs.
    """
    counts: dict[torch.dtype, int] = {}
    for tensor in state:
        if tensor.is_floating_point():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    floats = [tensor.dtype for tensor in inputs if tensor.is_floating_point()]
    return max(counts, key=counts.__getitem__) if counts else next(iter(floats), torch.float32)


class _Converter:
    def __init__(self, batched: BatchedGraph, conversion: Conversion) -> None:
        self.batched = batched
        self.source: torch.dtype
        self.low: torch.dtype
        self.source, self.low, self.io = (
            getattr(torch, name) for name in (conversion.members, conversion.inside, conversion.io)
        )
        self.wide: torch.dtype = torch.float32 if self.low.itemsize == 2 else self.low
        info = torch.finfo(self.low)
        self.smallest, self.largest = info.smallest_normal, info.max
        self.builder = GraphBuilder(batched.member.fake_mode)
        self.new: dict[fx.Node, Any] = {}
        self.filled: set[fx.Node] = set()
        self.returning: set[fx.Node] = set()
        self.parameters = _parameter_names(batched)

    def converted(self) -> BatchedGraph:
        for node in self.batched.graph.nodes:
            self.builder.origin = node
            if node.op == "placeholder":
                self.new[node] = self._placeholder(node)
            elif node.op == "call_function":
                self.new[node] = self._call(node)
        self.builder.origin = None
        outputs = [
            self._cast(self.new[n], self.io) if self._is_source(n) else self.new[n] for n in self.batched.outputs
        ]
        graph = self.builder.graph
        graph.output(tuple(outputs))
        graph.output_node().meta["val"] = tuple(node.meta["val"] for node in outputs)
        graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        graph.lint()
        packed = tuple(node.meta["packed"] for node in graph.nodes if "packed" in node.meta)
        return replace(self.batched, graph=graph, weights=replace(self.batched.weights, packed=packed))

    # -- leaves ------------------------------------------------------------------------------------

    def _placeholder(self, node: fx.Node) -> fx.Node:
        value = node.meta["val"]
        dtype = value.dtype
        if self._is_source(node):
            dtype = self._weight_dtype(node) if "packed" in node.meta else self.io
        with self.builder.symbolic():
            fake = value.new_empty(value.shape, dtype=dtype)
        new = self.builder.placeholder(str(node.target), fake)
        new.meta = {**node.meta, "val": fake}
        if "packed" in node.meta:
            new.meta["packed"] = replace(node.meta["packed"], dtype=dtype)
        return new

    def _weight_dtype(self, node: fx.Node) -> torch.dtype:
        """The low dtype for parameters, and for what differs between members; tables and norms keep their bits."""
        weight: PackedWeight = node.meta["packed"]
        is_trained = weight.kind != "shared" or self._reads_parameters(weight)
        if is_trained and not self._feeds_wide_only(node):
            return self.low
        return self.source if self.source.itemsize <= self.wide.itemsize else self.wide

    def _reads_parameters(self, weight: PackedWeight) -> bool:
        pieces: tuple[fx.Node, ...] = self.batched.weights.graph.output_node().args[0]  # type: ignore[assignment]
        left, seen = [pieces[weight.piece]], set[fx.Node]()
        while left:
            node = left.pop()
            if node.meta.get("leaf") in self.parameters:
                return True
            left += [arg for arg in node.all_input_nodes if arg not in seen]
            seen.update(node.all_input_nodes)
        return False

    def _feeds_wide_only(self, node: fx.Node) -> bool:
        if not node.users:
            return False
        for user in node.users:
            name = _name(user)
            if name in _MOVING or user.target is operator.getitem:
                if not self._feeds_wide_only(user):
                    return False
            elif user.op == "output" or name in _PRODUCTS or name in _KEEPING:
                return False
        return True

    # -- ops ---------------------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> Any:
        name, floats = _name(node), [arg for arg in node.all_input_nodes if self._is_source(arg)]
        if node.target is operator.getitem:
            return self._item(node)
        if not isinstance(node.target, OpOverload) or name.startswith("sym_"):
            return self._as_is(node)
        if name in _CASTS:
            return self._converted_cast(node, floats)
        new = self._run(node, self._dtype_of_operands(node, floats) if floats else None)
        if name in _FILLED and self._is_safe(node):
            self.filled.add(new)
        if name in _RETURNING and self._is_low(floats[0]) and not _has_dtype(node):
            if isinstance(new.meta["val"], torch.Tensor):
                return self._cast(new, self.low)
            self.returning.add(new)
        return new

    def _dtype_of_operands(self, node: fx.Node, floats: Sequence[fx.Node]) -> torch.dtype:
        """What an op is run in."""
        name = _name(node)
        if name in _PRODUCTS:
            mask = _attention_mask(node)
            is_low = any(map(self._is_low, floats)) and (mask not in floats or self._is_low(mask))
        elif name in _KEEPING and self._is_safe(node):
            fixed = [arg for arg in floats if self.new[arg] not in self.filled]
            is_low = bool(fixed) and all(map(self._is_low, fixed))
        else:
            is_low = False
        return self.low if is_low else self.wide

    def _converted_cast(self, node: fx.Node, floats: Sequence[fx.Node]) -> Any:
        """Casts to other dtypes stay; those to the members' own make float32, and what has it already is passed on."""
        given = node.args[0]
        assert isinstance(given, fx.Node)
        if not self._is_source(node):
            return self._run(node, None)
        if given in floats:
            return self.new[given]
        new = self._cast(self.new[given], self.wide)
        if given.meta["val"].dtype is torch.bool:
            self.filled.add(new)  # 0 and 1 are exact in any dtype
        return new

    def _item(self, node: fx.Node) -> fx.Node:
        given, index = node.args
        assert isinstance(given, fx.Node)
        new = self.builder.call(operator.getitem, self.new[given], index)
        is_value = self.new[given] in self.returning and index == 0
        return self._cast(new, self.low) if is_value else new

    def _as_is(self, node: fx.Node) -> fx.Node:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.new.__getitem__)
        return self.builder.call_as(node.meta["val"], node.target, *args, **kwargs)  # type: ignore[arg-type]

    def _run(self, node: fx.Node, dtype: torch.dtype | None) -> fx.Node:
        """The op, its operands of the members' dtype in `dtype`; None leaves them as they are."""

        def operand(arg: fx.Node) -> fx.Node:
            new: fx.Node = self.new[arg]
            return new if dtype is None or not self._is_source(arg) else self._cast(new, dtype)

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), operand)
        args, kwargs = tree_map(lambda leaf: self.wide if leaf is self.source else leaf, (args, kwargs))
        try:
            return self.builder.call(node.target, *args, **kwargs)  # type: ignore[arg-type]
        except Exception as error:
            if dtype is not None and "Guard" in type(error).__name__:
                # Torch's own shape functions would fix a dynamic dimension; the member graph's result has the shape.
                with self.builder.symbolic():
                    value = tree_map(lambda fake: self._as_source(fake, dtype), node.meta["val"])
                return self.builder.call_as(value, node.target, *args, **kwargs)  # type: ignore[arg-type]
            line = source_line(node)
            raise ExportError(
                f"cannot convert {node.target}{f' ({line})' if line else ''} to {str(dtype).removeprefix('torch.')}: "
                f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                hint="Leave --dtype out, and the members keep their own.",
            ) from error

    def _as_source(self, fake: Any, dtype: torch.dtype) -> Any:
        is_source = isinstance(fake, torch.Tensor) and fake.dtype == self.source
        return fake.new_empty(fake.shape, dtype=dtype) if is_source else fake

    def _cast(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        return node if node.meta["val"].dtype == dtype else self.builder.call(aten._to_copy.default, node, dtype=dtype)

    # -- questions ---------------------------------------------------------------------------------

    def _is_source(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        return isinstance(value, torch.Tensor) and value.dtype == self.source

    def _is_low(self, node: fx.Node) -> bool:
        return self.low != self.wide and bool(self.new[node].meta["val"].dtype == self.low)

    def _is_safe(self, node: fx.Node) -> bool:
        """Are the numbers among the arguments in the low dtype's range, neither too large nor subnormal?"""
        assert isinstance(node.target, OpOverload)
        named = {argument.name: str(argument.type) for argument in node.target._schema.arguments}
        given = [*zip(named, node.args, strict=False), *node.kwargs.items()]
        numbers: list[Any] = [v for name, v in given if isinstance(v, float) or _is_number(v, named[name])]
        return all(
            number == 0 or not math.isfinite(number) or self.smallest <= abs(number) <= self.largest
            for number in numbers
        )


def _is_number(value: Any, kind: str) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and "number" in kind


def _has_dtype(node: fx.Node) -> bool:
    return any(isinstance(leaf, torch.dtype) for leaf in tree_leaves((node.args, node.kwargs)))


def _attention_mask(node: fx.Node) -> Any:
    if _name(node) != "scaled_dot_product_attention":
        return None
    return node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")


def _name(node: fx.Node) -> str:
    if isinstance(node.target, OpOverload):
        return node.target._schema.name.rpartition("::")[2]
    return str(getattr(node.target, "__name__", node.target))


def _parameter_names(batched: BatchedGraph) -> frozenset[str]:
    names = batched.member.program.graph_signature.parameters
    return frozenset(name.removeprefix("member.") for name in names)
