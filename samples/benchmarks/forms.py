"""The forms that a layer of N members can take in one graph, each as an ONNX model with inputs and a way to compare."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Form:
    """One graph. `to_members` turns its outputs into `(N, ...)`, the same array for all forms of a layer."""

    name: str
    model: onnx.ModelProto
    feed: dict[str, Array]
    to_members: Callable[[Sequence[Array]], Array]


class Graph:
    """Writes a graph node by node; values are names."""

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(DTYPES[dtype])
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.feed: dict[str, Array] = {}

    def input(self, array: Array) -> str:
        """Add an input with these values; returns its name."""
        name = f"x{len(self.feed)}"
        self.feed[name] = np.ascontiguousarray(array.astype(self.dtype))
        return name

    def weight(self, array: Array) -> str:
        """Add an initializer; returns its name."""
        name = f"w{len(self.weights)}"
        cast = array if array.dtype == np.int64 else array.astype(self.dtype)
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(cast), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns its output."""
        return self.add_many(1, op, *inputs, **attributes)[0]

    def add_many(self, n_outputs: int, op: str, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node; returns its outputs."""
        names = [f"v{len(self.nodes)}_{index}" for index in range(n_outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names

    def reshape(self, value: str, *shape: int) -> str:
        """Add a Reshape to a constant shape."""
        return self.add("Reshape", value, self.weight(np.array(shape, dtype=np.int64)))

    def form(self, name: str, outputs: Sequence[str], to_members: Callable[[Sequence[Array]], Array]) -> Form:
        """Return what was written as a form."""
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        inputs = [helper.make_tensor_value_info(key, kind, array.shape) for key, array in self.feed.items()]
        results = [helper.make_tensor_value_info(value, kind, None) for value in outputs]
        graph = helper.make_graph(self.nodes, name, inputs, results, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return Form(name, model, self.feed, to_members)


def numbers(seed: int, *shape: int) -> Array:
    """Return random numbers, always the same."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def stacked(outputs: Sequence[Array]) -> Array:
    """Return one output a member as one array."""
    return np.stack(outputs)


# -- convolutions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conv:
    """Convolutions of stride 1 that keep the size, `layers` of them with a Relu between."""

    op: ClassVar[str] = "conv"
    in_channels: int
    out_channels: int
    kernel: int
    is_depthwise: bool
    size: int
    batch: int
    n_members: int
    layers: int

    def key(self) -> dict[str, Any]:
        """What tells this layer from others in the table."""
        return {
            "op": self.op,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel": self.kernel,
            "groups_per_member": self._groups,
            "pixels": self.size**2,
            "batch": self.batch,
            "n_members": self.n_members,
            "layers": self.layers,
        }

    @property
    def flops(self) -> int:
        """Two for each multiply-add of all members."""
        per_pixel = self.out_channels * (self.in_channels // self._groups) * self.kernel**2
        return 2 * self.layers * self.n_members * self.batch * self.size**2 * per_pixel

    @property
    def _groups(self) -> int:
        return self.in_channels if self.is_depthwise else 1

    def forms(self, dtype: str) -> list[Form]:
        """All forms of this layer; `unrolled` is the first."""
        made = [self._unrolled(dtype), self._unrolled_between(dtype), self._grouped(dtype, "grouped", 1)]
        for multiple in (8, 16):
            padded = [_up(self.in_channels, multiple), _up(self.out_channels, multiple)]
            if padded != [self.in_channels, self.out_channels] and (multiple == 8 or padded != self._padded_to_8()):
                made.append(self._grouped(dtype, f"padded_{multiple}", multiple))
        if not self.is_depthwise and self.n_members * self.in_channels <= 128:
            made.append(self._block_diagonal(dtype))
        if self.kernel == 1 and not self.is_depthwise:
            made.append(self._matmul(dtype))
        return made

    def _padded_to_8(self) -> list[int]:
        return [_up(self.in_channels, 8), _up(self.out_channels, 8)]

    def _weights(self) -> list[tuple[Array, Array]]:
        """Kernels `(N, Co, Ci/groups, k, k)` and biases `(N, Co)` of each layer."""
        fan_in = self.in_channels // self._groups * self.kernel**2
        shape = (self.n_members, self.out_channels, self.in_channels // self._groups, self.kernel, self.kernel)
        return [
            (numbers(10 + layer, *shape) * (2 / fan_in) ** 0.5, numbers(20 + layer, *shape[:2]) * 0.1)
            for layer in range(self.layers)
        ]

    def _inputs(self) -> Array:
        return numbers(1, self.n_members, self.batch, self.in_channels, self.size, self.size)

    def _side_by_side(self, channels: int) -> Array:
        """The inputs as `(B, N*C, H, W)`, channels filled up with zeros."""
        members = _fill(self._inputs(), 2, channels)
        return np.moveaxis(members, 0, 1).reshape(self.batch, -1, self.size, self.size)

    def _to_members(self, outputs: Sequence[Array]) -> Array:
        (value,) = outputs
        split = value.reshape(self.batch, self.n_members, -1, self.size, self.size)
        return np.moveaxis(split, 0, 1)[:, :, : self.out_channels]

    def _chain(self, graph: Graph, value: str, layer: Callable[[str, Array, Array], str]) -> str:
        for index, (kernel, bias) in enumerate(self._weights()):
            value = layer(graph.add("Relu", value) if index else value, kernel, bias)
        return value

    def _conv(self, graph: Graph, value: str, kernel: Array, bias: Array, group: int) -> str:
        pads = [self.kernel // 2] * 4
        return graph.add("Conv", value, graph.weight(kernel), graph.weight(bias), group=group, pads=pads)

    def _branches(self, graph: Graph, values: Sequence[str]) -> list[str]:
        return [
            self._chain(graph, value, lambda v, w, b, k=k: self._conv(graph, v, w[k], b[k], self._groups))
            for k, value in enumerate(values)
        ]

    def _unrolled(self, dtype: str) -> Form:
        """One convolution a member, on tensors of their own."""
        graph = Graph(dtype)
        values = [graph.input(array) for array in self._inputs()]
        return graph.form("unrolled", self._branches(graph, values), stacked)

    def _unrolled_between(self, dtype: str) -> Form:
        """The same out of and into `(B, N*C, H, W)`: what it costs to unroll one stage of a packed graph."""
        graph = Graph(dtype)
        value = graph.input(self._side_by_side(self.in_channels))
        parts = graph.add_many(self.n_members, "Split", value, axis=1, num_outputs=self.n_members)
        joined = graph.add("Concat", *self._branches(graph, parts), axis=1)
        return graph.form("unrolled_between", [joined], self._to_members)

    def _grouped(self, dtype: str, name: str, multiple: int) -> Form:
        """One convolution with N groups (N*C if depthwise); channels of each member filled up to a multiple."""
        graph = Graph(dtype)
        channels_in, channels_out = _up(self.in_channels, multiple), _up(self.out_channels, multiple)
        group = self.n_members * (channels_in if self.is_depthwise else 1)

        def layer(value: str, kernel: Array, bias: Array) -> str:
            full = _fill(kernel, 1, channels_out)
            full = full if self.is_depthwise else _fill(full, 2, channels_in)
            flat = full.reshape(-1, *full.shape[2:])
            return self._conv(graph, value, flat, _fill(bias, 1, channels_out).reshape(-1), group)

        value = self._chain(graph, graph.input(self._side_by_side(channels_in)), layer)
        return graph.form(name, [value], self._to_members)

    def _block_diagonal(self, dtype: str) -> Form:
        """One dense convolution whose kernel is zero between members."""
        graph = Graph(dtype)

        def layer(value: str, kernel: Array, bias: Array) -> str:
            dense = np.zeros((self.n_members, kernel.shape[1], self.n_members, *kernel.shape[2:]), np.float32)
            for k in range(self.n_members):
                dense[k, :, k] = kernel[k]
            flat = dense.reshape(-1, self.n_members * kernel.shape[2], *kernel.shape[3:])
            return self._conv(graph, value, flat, bias.reshape(-1), 1)

        value = self._chain(graph, graph.input(self._side_by_side(self.in_channels)), layer)
        return graph.form("block_diagonal", [value], self._to_members)

    def _matmul(self, dtype: str) -> Form:
        """1x1 convolutions as a batched product `(N, Co, Ci) x (B, N, Ci, H*W)` on views of `(B, N*C, H, W)`."""
        graph = Graph(dtype)
        value = graph.reshape(graph.input(self._side_by_side(self.in_channels)), 0, self.n_members, -1, self.size**2)

        def layer(inner: str, kernel: Array, bias: Array) -> str:
            product = graph.add("MatMul", graph.weight(kernel[..., 0, 0]), inner)
            return graph.add("Add", product, graph.weight(bias[:, :, None]))

        value = self._chain(graph, value, layer)
        value = graph.reshape(value, 0, self.n_members * self.out_channels, self.size, self.size)
        return graph.form("matmul", [value], self._to_members)


def _up(channels: int, multiple: int) -> int:
    return -(-channels // multiple) * multiple


def _fill(array: Array, axis: int, size: int) -> Array:
    """Append zeros along an axis."""
    widths = [(0, size - array.shape[axis] if index == axis else 0) for index in range(array.ndim)]
    return np.pad(array, widths)


# -- linear layers ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear:
    """A linear layer on M rows; of each member's own, or the same for all."""

    op: ClassVar[str] = "linear"
    rows: int
    in_features: int
    out_features: int
    n_members: int
    is_shared: bool = False
    layers: ClassVar[int] = 1

    def key(self) -> dict[str, Any]:
        """What tells this layer from others in the table."""
        return {
            "op": "linear_shared" if self.is_shared else "linear",
            "rows": self.rows,
            "in_features": self.in_features,
            "out_features": self.out_features,
            "n_members": self.n_members,
        }

    @property
    def flops(self) -> int:
        """Two for each multiply-add of all members."""
        return 2 * self.n_members * self.rows * self.in_features * self.out_features

    def forms(self, dtype: str) -> list[Form]:
        """All forms of this layer; `unrolled` is the first."""
        if self.is_shared:
            return [self._unrolled(dtype), self._wide(dtype), self._wide_members(dtype), self._batched(dtype)]
        return [self._unrolled(dtype), self._unrolled_between(dtype), self._batched(dtype)]

    def _weights(self) -> tuple[Array, Array]:
        weight = numbers(2, self.n_members, self.in_features, self.out_features) * self.in_features**-0.5
        return weight, numbers(3, self.n_members, self.out_features)

    def _inputs(self) -> Array:
        shape = (self.rows, self.in_features)
        return numbers(1, *shape) if self.is_shared else numbers(1, self.n_members, *shape)

    def _gemms(self, graph: Graph, values: Sequence[str]) -> list[str]:
        weight, bias = self._weights()
        return [graph.add("Gemm", v, graph.weight(weight[k]), graph.weight(bias[k])) for k, v in enumerate(values)]

    def _unrolled(self, dtype: str) -> Form:
        """One Gemm a member."""
        graph = Graph(dtype)
        inputs = self._inputs()
        values = [graph.input(inputs)] * self.n_members if self.is_shared else [graph.input(array) for array in inputs]
        return graph.form("unrolled", self._gemms(graph, values), stacked)

    def _unrolled_between(self, dtype: str) -> Form:
        """The same out of and into `(N, M, K)`."""
        graph = Graph(dtype)
        parts = graph.add_many(self.n_members, "Split", graph.input(self._inputs()), axis=0, num_outputs=self.n_members)
        products = self._gemms(graph, [graph.reshape(part, -1, self.in_features) for part in parts])
        joined = graph.add("Concat", *[graph.reshape(value, 1, -1, self.out_features) for value in products], axis=0)
        return graph.form("unrolled_between", [joined], lambda outputs: outputs[0])

    def _batched(self, dtype: str) -> Form:
        """`(N, M, K) x (N, K, O)`, or `(M, K) x (N, K, O)` of a shared input."""
        graph = Graph(dtype)
        weight, bias = self._weights()
        product = graph.add("MatMul", graph.input(self._inputs()), graph.weight(weight))
        value = graph.add("Add", product, graph.weight(bias[:, None]))
        return graph.form("batched", [value], lambda outputs: outputs[0])

    def _wide_value(self, graph: Graph) -> str:
        weight, bias = self._weights()
        wide = weight.transpose(0, 2, 1).reshape(-1, self.in_features)
        value = graph.input(self._inputs())
        return graph.add("Gemm", value, graph.weight(wide), graph.weight(bias.reshape(-1)), transB=1)

    def _wide(self, dtype: str) -> Form:
        """One Gemm for all members, `(M, N*O)`."""
        graph = Graph(dtype)
        shape = (self.rows, self.n_members, self.out_features)
        value = self._wide_value(graph)
        return graph.form("wide", [value], lambda outputs: outputs[0].reshape(shape).transpose(1, 0, 2))

    def _wide_members(self, dtype: str) -> Form:
        """The same, brought into `(N, M, O)`."""
        graph = Graph(dtype)
        split = graph.reshape(self._wide_value(graph), 0, self.n_members, -1)
        value = graph.add("Transpose", split, perm=[1, 0, 2])
        return graph.form("wide_members", [value], lambda outputs: outputs[0])


# -- layer norms -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerNorm:
    """A layer norm of M rows a member, with a scale and shift of its own."""

    op: ClassVar[str] = "layer_norm"
    rows: int
    features: int
    n_members: int
    layers: ClassVar[int] = 1

    def key(self) -> dict[str, Any]:
        """What tells this layer from others in the table."""
        return {"op": self.op, "rows": self.rows, "features": self.features, "n_members": self.n_members}

    @property
    def flops(self) -> int:
        """Two for each multiply-add of all members."""
        return 0

    def forms(self, dtype: str) -> list[Form]:
        """All forms of this layer; `unrolled` is the first."""
        return [self._unrolled(dtype), self._affine(dtype), self._folded(dtype), self._flattened(dtype)]

    def _scales(self) -> tuple[Array, Array]:
        return 1 + 0.1 * numbers(2, self.n_members, self.features), numbers(3, self.n_members, self.features)

    def _inputs(self) -> Array:
        return numbers(1, self.n_members, self.rows, self.features)

    def _plain(self, graph: Graph, value: str) -> str:
        ones, zeros = np.ones(self.features, np.float32), np.zeros(self.features, np.float32)
        return graph.add("LayerNormalization", value, graph.weight(ones), graph.weight(zeros), axis=-1)

    def _scaled(self, outputs: Sequence[Array]) -> Array:
        """What the next layer, which holds scale and shift, would make of it."""
        scale, shift = self._scales()
        normed = outputs[0].reshape(self.n_members, self.rows, self.features).astype(np.float32)
        return normed * scale[:, None] + shift[:, None]

    def _unrolled(self, dtype: str) -> Form:
        """One norm a member."""
        graph = Graph(dtype)
        scale, shift = self._scales()
        values = [
            graph.add("LayerNormalization", graph.input(x), graph.weight(scale[k]), graph.weight(shift[k]), axis=-1)
            for k, x in enumerate(self._inputs())
        ]
        return graph.form("unrolled", values, stacked)

    def _affine(self, dtype: str) -> Form:
        """One norm without scale, then `Mul (N, 1, D)` and `Add (N, 1, D)`."""
        graph = Graph(dtype)
        scale, shift = self._scales()
        value = self._plain(graph, graph.input(self._inputs()))
        value = graph.add("Mul", value, graph.weight(scale[:, None]))
        value = graph.add("Add", value, graph.weight(shift[:, None]))
        return graph.form("affine", [value], lambda outputs: outputs[0])

    def _folded(self, dtype: str) -> Form:
        """One norm without scale: scale and shift went into the layers that read it."""
        graph = Graph(dtype)
        return graph.form("folded", [self._plain(graph, graph.input(self._inputs()))], self._scaled)

    def _flattened(self, dtype: str) -> Form:
        """The same on `(N*M, D)`."""
        graph = Graph(dtype)
        flat = self._inputs().reshape(-1, self.features)
        return graph.form("flattened", [self._plain(graph, graph.input(flat))], self._scaled)


Problem = Conv | Linear | LayerNorm
