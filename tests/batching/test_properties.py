"""Layers with options drawn at random, each against the loop over its members.

Every draw is a layer a user can write; the batched graph must equal the loop whatever the options, for a shared input
and for one of each member's own. Most draws run the graph in torch; a few of each family go through ONNX Runtime.
`-m slow` draws ten times as many.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ensexport.batching.engine import batch_graph
from ensexport.batching.examples import Example
from ensexport.batching.member_graph import MemberGraph
from ensexport.errors import FrozenDimError, ModelInputError, UnsupportedModelError
from ensexport.stacking.state import named_tensors
from tests.batching.runs import assert_equals_loop, capture, fx_run, onnx_run
from tests.batching.table import Row, make_member

# A failing draw prints its layer; making it smaller would take minutes.
_SETTINGS = settings(
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
_KINDS = ["Conv", "ConvTranspose", "MaxPool", "AvgPool", "LPPool", "AdaptiveMaxPool", "AdaptiveAvgPool"]
_LAYERS = {
    kind: [getattr(nn, f"{kind}{rank}d") for rank in (1, 2, 3)] for kind in [*_KINDS, "BatchNorm", "InstanceNorm"]
}


@dataclass(frozen=True)
class Case:
    """One drawn layer: what builds a member, and its inputs as the command line takes them."""

    build: Callable[[], nn.Module]
    inputs: tuple[str, ...]
    only_shared: tuple[str, ...] = ()


class Chain(nn.Module):
    """Layers in a row, given as partials so that a failing draw prints what it is."""

    def __init__(self, *builds: Callable[[], nn.Module] | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(build() for build in builds if build is not None)

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


def _sizes(draw: st.DrawFn, rank: int, low: int = 5, high: int = 8) -> list[int]:
    return list(_each(draw, rank, low, high if rank < 3 else low + 1))


def _each(draw: st.DrawFn, rank: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(low, high)) for _ in range(rank))


def _image(channels: int, sizes: list[int], *, is_dynamic: bool = False) -> str:
    names = [f"side{index}" if is_dynamic else str(size) for index, size in enumerate(sizes)]
    return f"x:float32[batch,{channels},{','.join(names)}]"


def _first(draw: st.DrawFn, rank: int, channels: int) -> Callable[[], nn.Module] | None:
    """A layer in front, so that the drawn one sees values that differ between members, or none."""
    return partial(_LAYERS["Conv"][rank - 1], channels, channels, 1) if draw(st.booleans()) else None


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(1, 3))
    groups, sizes = draw(st.sampled_from([1, 1, 2, 3])), _sizes(draw, rank)
    channels = groups * draw(st.integers(1, 2))
    kind = draw(st.sampled_from(["number", "number", "same", "valid"]))
    options: dict[str, Any] = {
        "kernel_size": _each(draw, rank, 1, 3),
        "stride": (1,) * rank if kind == "same" else _each(draw, rank, 1, 3),
        "padding": _each(draw, rank, 0, 2) if kind == "number" else kind,
        "dilation": _each(draw, rank, 1, 2),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"])),
    }
    layer = partial(_LAYERS["Conv"][rank - 1], channels, groups * draw(st.integers(1, 2)), **options)
    image = _image(channels, sizes, is_dynamic=draw(st.booleans()))
    return Case(partial(Chain, _first(draw, rank, channels), layer), (image,))


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(1, 3))
    groups, sizes = draw(st.integers(1, 3)), _sizes(draw, rank, 3, 5)
    channels = groups * draw(st.integers(1, 2))
    stride, dilation = _each(draw, rank, 1, 3), _each(draw, rank, 1, 2)
    options: dict[str, Any] = {
        "kernel_size": _each(draw, rank, 1, 3),
        "stride": stride,
        "padding": _each(draw, rank, 0, 1),
        "output_padding": tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)),
        "groups": groups,
        "bias": draw(st.booleans()),
        "dilation": dilation,
    }
    layer = partial(_LAYERS["ConvTranspose"][rank - 1], channels, groups * draw(st.integers(1, 2)), **options)
    image = _image(channels, sizes, is_dynamic=draw(st.booleans()))
    return Case(partial(Chain, _first(draw, rank, channels), layer), (image,))


@st.composite
def pools(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["MaxPool", "AvgPool", "LPPool", "AdaptiveMaxPool", "AdaptiveAvgPool"]))
    kernel, stride = _each(draw, rank, 2, 3), draw(st.none() | st.just(_each(draw, rank, 1, 3)))
    options: dict[str, Any] = {"kernel_size": kernel, "stride": stride or kernel}
    if kind == "LPPool":
        if rank == 1:
            options = {name: value[0] for name, value in options.items()}
        options |= {"norm_type": draw(st.integers(1, 2)), "ceil_mode": draw(st.booleans())}
    elif kind in ("MaxPool", "AvgPool"):
        options["padding"] = tuple(draw(st.integers(0, size // 2)) for size in kernel)
        options["ceil_mode"] = draw(st.booleans())
        if kind == "MaxPool":
            options |= {"dilation": _each(draw, rank, 1, 2), "return_indices": draw(st.booleans())}
        else:
            options["count_include_pad"] = draw(st.booleans())
            if rank > 1:
                options["divisor_override"] = draw(st.none() | st.integers(1, 5))
    else:
        options = {"output_size": _each(draw, rank, 1, 4)}
        if kind == "AdaptiveMaxPool":
            options["return_indices"] = draw(st.booleans())
    front = partial(_LAYERS["Conv"][rank - 1], 2, 2, 1)
    image = _image(2, _sizes(draw, rank))
    return Case(partial(Chain, front, partial(_LAYERS[kind][rank - 1], **options)), (image,))


@st.composite
def norms(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from(["BatchNorm", "InstanceNorm", "group", "layer", "rms", "local"]))
    rank, affine = draw(st.integers(1, 3)), draw(st.booleans())
    sizes, channels = _sizes(draw, rank, 3, 5), draw(st.sampled_from([2, 4, 6]))
    layer: Callable[[], nn.Module]
    if kind in _LAYERS:
        options = {"track_running_stats": draw(st.booleans()), "eps": draw(st.sampled_from([1e-5, 0.1]))}
        layer = partial(_LAYERS[kind][rank - 1], channels, affine=affine, **options)
    elif kind == "group":
        groups = draw(st.sampled_from([size for size in (1, 2, 3, 4, 6) if channels % size == 0]))
        layer = partial(nn.GroupNorm, groups, channels, affine=affine)
    elif kind == "local":
        layer = partial(nn.LocalResponseNorm, draw(st.integers(2, 4)), alpha=0.5, k=draw(st.sampled_from([1.0, 2.0])))
    else:
        shape = [channels, *sizes][draw(st.integers(0, rank)) :]
        if kind == "rms":
            layer = partial(nn.RMSNorm, shape, elementwise_affine=affine, eps=draw(st.none() | st.just(1e-3)))
        else:
            layer = partial(nn.LayerNorm, shape, elementwise_affine=affine, bias=draw(st.booleans()))
    image = _image(channels, sizes, is_dynamic=draw(st.booleans()) and kind not in ("layer", "rms"))
    return Case(partial(Chain, _first(draw, rank, channels), layer), (image,))


@st.composite
def linears(draw: st.DrawFn) -> Case:
    width, inner = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    layers: list[Callable[[], nn.Module]] = [partial(nn.Linear, width, inner, bias=draw(st.booleans()))]
    if draw(st.booleans()):
        layers.append(draw(st.sampled_from([nn.ReLU, nn.GELU, partial(nn.Softmax, -1)])))
        layers.append(partial(nn.Linear, inner, draw(st.integers(1, 4)), bias=draw(st.booleans())))
    leading = draw(st.lists(st.sampled_from(["3", "2", "time", "1"]), max_size=3, unique=True))
    names = [*draw(st.sampled_from([["batch"], ["batch"], []])), *leading, str(width)]
    return Case(partial(Chain, *layers), (f"x:float32[{','.join(names)}]",))


class Resize(nn.Module):
    def __init__(self, rank: int, **options: Any) -> None:
        super().__init__()
        self.front = _LAYERS["Conv"][rank - 1](2, 2, 1)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.front(x), **self.options)


@st.composite
def resizings(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(1, 3))
    smooth = {1: ["linear"], 2: ["bilinear", "bicubic"], 3: ["trilinear"]}[rank]
    mode = draw(st.sampled_from(["nearest", "nearest-exact", "area", *smooth, *smooth]))
    options: dict[str, Any] = {"mode": mode}
    if draw(st.booleans()):
        options["size"] = _each(draw, rank, 2, 9)
    else:
        options["scale_factor"] = tuple(draw(st.sampled_from([0.5, 1.0, 1.5, 2.0, 2.3])) for _ in range(rank))
        if mode != "area" and draw(st.booleans()):
            options["recompute_scale_factor"] = True
    if mode in smooth:
        options["align_corners"] = draw(st.booleans())
        if rank == 2 and not options["align_corners"]:
            options["antialias"] = draw(st.booleans())
    return Case(partial(Resize, rank, **options), (_image(2, _sizes(draw, rank, 4, 7)),))


def _with_first(seen: Tensor) -> Tensor:
    """Let every query see one key: where it sees none, kernels of torch differ."""
    return seen | (torch.arange(seen.shape[1]) == 0)


class Attention(nn.Module):
    """Scaled dot-product attention of `x` on itself or on `memory`."""

    def __init__(self, heads: int, kv: int, mask: str, *, is_causal: bool, scale: float | None) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, heads * 3), nn.Linear(6, kv * 3), nn.Linear(6, kv * 3)
        self.heads, self.kv, self.mask, self.is_causal, self.scale = heads, kv, mask, is_causal, scale

    def forward(self, x: Tensor, memory: Tensor, seen: Tensor) -> Tensor:
        source = x if self.is_causal else memory
        q = self.q(x).unflatten(-1, (self.heads, 3)).transpose(1, 2)
        k = self.k(source).unflatten(-1, (self.kv, 3)).transpose(1, 2)
        v = self.v(source).unflatten(-1, (self.kv, 3)).transpose(1, 2)
        seen = _with_first(seen)[:, None, None, :]
        mask = {
            "none": None,
            "bool": seen,
            "float": ~seen * -2.0,
            "shared": torch.arange(x.shape[1])[:, None] + 1.0 * torch.arange(source.shape[1]),
            "heads": q[..., :1] * seen,
        }[self.mask]
        y = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=self.is_causal, scale=self.scale, enable_gqa=self.heads != self.kv
        )
        return y.transpose(1, 2).flatten(2)


class Multihead(nn.Module):
    def __init__(self, mask: str, *, need_weights: bool, average: bool, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, **options)
        self.mask, self.need_weights, self.average = mask, need_weights, average

    def forward(self, x: Tensor, memory: Tensor, seen: Tensor) -> Any:
        unseen = ~_with_first(seen)
        causal = torch.ones(x.shape[1], memory.shape[1], dtype=torch.bool).triu(1)
        masks: dict[str, Any] = {
            "none": {},
            "padding": {"key_padding_mask": unseen},
            "causal": {"attn_mask": causal},
            "both": {"attn_mask": causal, "key_padding_mask": unseen},
            "float": {"attn_mask": causal * -2.0, "key_padding_mask": unseen * -1.0},
        }
        if not self.attention.batch_first:
            x, memory = x.transpose(0, 1), memory.transpose(0, 1)
        options = {"need_weights": self.need_weights, "average_attn_weights": self.average}
        y, weights = self.attention(x, memory, memory, **options, **masks[self.mask])
        return (y, weights) if self.need_weights else y


@st.composite
def attentions(draw: st.DrawFn) -> Case:
    inputs = ("x:float32[batch,len,6]", "memory:float32[batch,src,6]", "seen:bool[batch,src]")
    only_shared = draw(st.sampled_from([(), ("seen",), ("memory", "seen")]))
    build: Callable[[], nn.Module]
    if draw(st.booleans()):
        is_causal = draw(st.booleans())
        mask = "none" if is_causal else draw(st.sampled_from(["none", "bool", "float", "shared", "heads"]))
        heads, kv = draw(st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]))
        build = partial(Attention, heads, kv, mask, is_causal=is_causal, scale=draw(st.none() | st.just(0.3)))
    else:
        names = ("bias", "add_bias_kv", "add_zero_attn", "batch_first", "need_weights", "average")
        mask = draw(st.sampled_from(["none", "padding", "causal", "both", "float"]))
        build = partial(Multihead, mask, **{name: draw(st.booleans()) for name in names})
    return Case(build, inputs, only_shared)


_SIZE = {"a": 2, "b": 3, "c": 4, "d": 1, "e": 5}


class Product(nn.Module):
    """`x` with a weight labelled `own`; a label `B` of it makes it an activation, the weight times each row's sum."""

    def __init__(self, equation: str, own: str, *, is_first: bool) -> None:
        super().__init__()
        self.equation, self.is_first = equation, is_first
        self.weight = nn.Parameter(torch.empty([1 if label == "B" else _SIZE[label] for label in own]))
        self.batch_dim = own.find("B")

    def forward(self, x: Tensor) -> Tensor:
        other = self.weight
        if self.batch_dim >= 0:
            sizes = [-1 if dim == self.batch_dim else 1 for dim in range(other.dim())]
            other = other * x.flatten(1).sum(1).reshape(sizes)
        return torch.einsum(self.equation, *((other, x) if self.is_first else (x, other)))


@st.composite
def products(draw: st.DrawFn) -> Case:
    """Einstein sums of two activations, or of an activation and a weight."""
    labels = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True))
    others = draw(st.lists(st.sampled_from("abcde"), min_size=1, max_size=3, unique=True))
    both = list(dict.fromkeys([*labels, *others]))
    result = draw(st.permutations(both))[: draw(st.integers(0, len(both)))]
    own = others if draw(st.booleans()) else draw(st.permutations(["B", *others]))
    terms = ["".join(["B", *labels]), "".join(own)]
    is_first = draw(st.booleans())
    equation = f"{','.join(terms[::-1] if is_first else terms)}->{''.join(draw(st.permutations(['B', *result])))}"
    build = partial(Product, equation, terms[1], is_first=is_first)
    return Case(build, (f"x:float32[batch,{','.join(str(_SIZE[label]) for label in labels)}]",))


FAMILIES = {
    "conv": convolutions(),
    "conv-transpose": transposed_convolutions(),
    "pool": pools(),
    "norm": norms(),
    "linear": linears(),
    "resize": resizings(),
    "attention": attentions(),
    "einsum": products(),
}


def _captured(case: Case, module: nn.Module) -> tuple[MemberGraph, Example]:
    """The member graph; a draw that torch itself refuses, run or exported, is put aside."""
    try:
        return capture(module, *case.inputs)
    except (ModelInputError, FrozenDimError, UnsupportedModelError) as error:
        assume(error.__cause__ is None)  # the cause is what torch raised for this one member
        raise


def check(case: Case, n_members: int, is_own: bool, batches: tuple[int, int], folder: Path | None) -> None:
    members = [make_member(Row(case.build, case.inputs), seed) for seed in range(n_members)]
    member, example = _captured(case, members[0])
    names = [text.partition(":")[0] for text in case.inputs]
    per_member = [name for name in names if is_own and name not in case.only_shared]
    graph = batch_graph(member, n_members, per_member=per_member)
    weights = graph.weights.pack([named_tensors(module) for module in members], n_members)
    runs = [fx_run(graph, weights)] if folder is None else [onnx_run(graph, weights, folder)]
    assert_equals_loop(runs, members, graph, example, batches=batches)
    assert n_members == 1 or not graph.plan.fallbacks


OPTIONS = {
    "n_members": st.integers(1, 3),
    "is_own": st.booleans(),
    "batches": st.sampled_from([(1, 4), (2, 5), (7, 1)]),  # the example's batch is 3
}


_TIMES = pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])


@_TIMES
@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_layer_equals_the_loop(family: str, times: int) -> None:
    @settings(_SETTINGS, max_examples=(4 if family == "attention" else 12) * times)
    @given(case=FAMILIES[family], **OPTIONS)
    def run(case: Case, n_members: int, is_own: bool, batches: tuple[int, int]) -> None:
        check(case, n_members, is_own, batches, None)

    run()


@_TIMES
@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_layer_equals_the_loop_in_onnx_runtime(family: str, times: int, tmp_path: Path) -> None:
    folders = (tmp_path / str(number) for number in itertools.count())

    @settings(_SETTINGS, max_examples=2 * times)
    @given(case=FAMILIES[family], **OPTIONS)
    def run(case: Case, n_members: int, is_own: bool, batches: tuple[int, int]) -> None:
        folder = next(folders)
        folder.mkdir()
        check(case, n_members, is_own, batches, folder)

    run()
