"""Small modules over all families of ops: name -> module, inputs. The tests batch each of them.

Every row is one architecture whose members differ in all their weights; a named dim in its inputs is dynamic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Row:
    """One architecture of the table.

    Attributes:
        build: Returns a member with fresh random weights.
        inputs: Its inputs as the command line takes them.
        only_shared: Names of inputs that stay shared when the row is run per-member.
        steps: Steps of the ladder this row may go down to; empty means rules only.
    """

    build: Callable[[], nn.Module]
    inputs: tuple[str, ...]
    only_shared: tuple[str, ...] = ()
    steps: frozenset[str] = field(default_factory=frozenset)


class Fn(nn.Module):
    """`function(self, *inputs)` with a few parameters to play with: `w (4, 6)`, `v (6,)`, `s ()`."""

    def __init__(self, function: Callable[..., object], **tensors: Tensor | nn.Module) -> None:
        super().__init__()
        self.function = function
        self.w = nn.Parameter(torch.empty(4, 6))
        self.v = nn.Parameter(torch.empty(6))
        self.s = nn.Parameter(torch.empty(()))
        for name, value in tensors.items():
            if isinstance(value, nn.Module):
                setattr(self, name, value)
            else:
                self.register_buffer(name, value)

    def forward(self, *inputs: Tensor) -> object:
        return self.function(self, *inputs)


def fn(function: Callable[..., object], *inputs: str, **options: object) -> Row:
    tensors = {k: v for k, v in options.items() if isinstance(v, Tensor)}
    others = {k: v for k, v in options.items() if not isinstance(v, Tensor)}
    return Row(lambda: Fn(function, **tensors), inputs or ("x:float32[batch,4,6]",), **others)  # type: ignore[arg-type]


def layer(build: Callable[[], nn.Module], *inputs: str, **options: object) -> Row:
    return Row(build, inputs, **options)  # type: ignore[arg-type]


class Permute(nn.Module):
    """Reorder dims, as torchvision's `Permute` does."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(self.dims)


def seq(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(make() for make in layers))


class _MHA(nn.Module):
    def __init__(self, masked: bool = False, causal: bool = False, batch_first: bool = True) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.masked, self.causal = masked, causal

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        causal = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1) if self.causal else None
        return self.attention(x, x, x, key_padding_mask=mask, attn_mask=causal, need_weights=False)[0]


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.rnn = kind(5, 4, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class _Final(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 5)
        self.rnn = nn.LSTM(5, 4, batch_first=True, bidirectional=True, num_layers=2)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        _, (h, c) = self.rnn(self.embed(ids))
        return self.head(torch.cat([h[-1], h[-2], c[-1], c[-2]], dim=-1))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.n = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.b(F.relu_(self.n(self.a(x)))))


class _SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class _Attention(nn.Module):
    def __init__(self, causal: bool = False, heads: int = 2, kv: int = 2) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, heads * 4), nn.Linear(8, kv * 4), nn.Linear(8, kv * 4)
        self.out = nn.Linear(heads * 4, 8)
        self.heads, self.kv, self.causal = heads, kv, causal

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q = self.q(x).view(b, s, self.heads, 4).transpose(1, 2)
        k = self.k(x).view(b, s, self.kv, 4).transpose(1, 2)
        v = self.v(x).view(b, s, self.kv, 4).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=self.heads != self.kv)
        return self.out(y.transpose(1, 2).reshape(b, s, self.heads * 4))


class _Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 8)
        self.register_buffer("freq", 1.0 / 100 ** (torch.arange(0, 4, 2) / 4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q = self.q(x).view(b, s, 2, 4)
        angles = torch.outer(torch.arange(s, device=x.device).float(), self.freq)
        cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]
        even, odd = q[..., ::2], q[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(3)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.position = nn.Embedding(16, 8)
        self.norm = nn.LayerNorm(8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.block(x)))


class _Unet3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.LeakyReLU())
        self.b = nn.Sequential(nn.Conv3d(4, 8, 3, 2, 1), nn.InstanceNorm3d(8, affine=True), nn.LeakyReLU())
        self.up = nn.ConvTranspose3d(8, 4, 2, 2)
        self.c = nn.Conv3d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.a(x)
        return self.c(torch.cat([self.up(self.b(skip)), skip], 1))


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.table = nn.Linear(6, 4), nn.Linear(3, 4)

    def forward(self, image: Tensor, table: Tensor) -> dict[str, Tensor | None]:
        a, b = self.image(image), self.table(table)
        return {"sum": a + b, "none": None, "parts": (a, b)}  # type: ignore[dict-item]


class _Window(nn.Module):
    """Window partition and a relative position bias, as Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.bias = nn.Parameter(torch.empty(9, 2))
        index = torch.arange(4)[:, None] - torch.arange(4)[None]
        self.register_buffer("index", (index + 4).clamp(0, 8))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = torch.roll(x, (-1, -1), (1, 2))
        x = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(x).reshape(-1, 4, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) + self.bias[self.index.view(-1)].view(4, 4, 2).permute(2, 0, 1)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, c)
        y = y.view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return torch.roll(y, (1, 1), (1, 2))


IMAGE = "x:float32[batch,3,12,12]"
WIDE = "x:float32[batch,4,8,8]"
LINE = "x:float32[batch,4,16]"
CUBE = "x:float32[batch,2,6,6,6]"
ROWS = "x:float32[batch,8]"
TOKENS = "x:float32[batch,seq,8]"
IDS = "ids:int64[batch,seq]"
F2 = "x:float32[batch,4,6]"

TABLE: dict[str, Row] = {
    # linear algebra
    "mlp": layer(
        seq(lambda: nn.Linear(8, 16), nn.ReLU, lambda: nn.Linear(16, 16), nn.GELU, lambda: nn.Linear(16, 3)), ROWS
    ),
    "linear-no-bias": layer(seq(lambda: nn.Linear(8, 6, bias=False), lambda: nn.Linear(6, 5, bias=False)), ROWS),
    "linear-3d": layer(seq(lambda: nn.Linear(8, 6), nn.Tanh, lambda: nn.Linear(6, 5)), TOKENS),
    "linear-1d": layer(seq(lambda: nn.Linear(8, 6), nn.Tanh, lambda: nn.Linear(6, 5)), "x:float32[8]"),
    "bilinear": layer(lambda: nn.Bilinear(8, 8, 3), "a:float32[batch,8]", "b:float32[batch,8]"),
    "matmul-weight": fn(lambda m, x: x @ m.w.t()),
    "matmul-left": fn(lambda m, x: m.w.t() @ x),
    "matmul-vector": fn(lambda m, x: x @ m.v),
    "matmul-twice": fn(lambda m, x: (x @ m.w.t()) @ x),
    "bmm": fn(lambda m, x: torch.bmm(x * m.v, x.transpose(1, 2))),
    "einsum": fn(lambda m, x: torch.einsum("bij,kj->bik", x, m.w)),
    "einsum-batch": fn(lambda m, x: torch.einsum("bij,bkj->bik", x * m.s, x)),
    "einsum-heads": fn(lambda m, x: torch.einsum("bqd,bkd->bqk", x * m.v, x).softmax(-1)),
    "einsum-weight-first": fn(lambda m, x: torch.einsum("kj,bij->bki", m.w, x)),
    "einsum-weight-a-head": fn(
        lambda m, x: torch.einsum("bhd,hd->bh", x, m.w) + torch.einsum("bhd,hd->b", x, m.w)[:, None]
    ),
    "einsum-several-dims": fn(
        lambda m, x: torch.einsum("bij,klij->blk", x, m.w.view(2, 2, 6)[..., None, :].repeat(1, 1, 4, 1))
    ),
    "einsum-outer": fn(lambda m, x: torch.einsum("bij,k->bkji", x, m.v)),
    "einsum-elementwise": fn(lambda m, x: torch.einsum("bij,bij->bi", x * m.v, x)),
    "einsum-sum": fn(lambda m, x: torch.einsum("bij->jb", x * m.v)),
    "einsum-ellipsis": fn(
        lambda m, x: torch.einsum("...j,kj->...k", x, m.w) + torch.einsum("...ij,...ij->...i", x, m.w)[..., None]
    ),
    "einsum-implicit": fn(lambda m, x: torch.einsum("bij,kj", x, m.w)),
    "einsum-three": fn(lambda m, x: torch.einsum("bij,kj,bil->bkl", x, m.w, x)),
    "einsum-dynamic": fn(lambda m, x: torch.einsum("btc,bsc->bts", x * m.v, x), "x:float32[batch,time,6]"),
    "einsum-diagonal": fn(lambda m, x: torch.einsum("bii->bi", (x * m.v)[..., :4]), steps=frozenset({"vmap"})),
    "tensordot": fn(
        lambda m, x: (
            torch.tensordot(x, m.w, dims=([1, 2], [0, 1]))[:, None] + torch.tensordot(x, m.w, dims=([2], [1])).sum(1)
        )
    ),
    "kron": fn(lambda m, x: torch.kron(m.w, x[0]) + torch.kron(x[0], m.w)),
    "matrix-vector": fn(lambda m, x: torch.mv(x[0], m.v) + torch.dot(m.v, m.w[0])),
    "addmm": fn(lambda m, x: torch.addmm(m.v[:4], x[:, 0], m.w.t())),
    "baddbmm": fn(lambda m, x: torch.baddbmm(m.s * x, x @ x.transpose(1, 2), x)),
    "outer": fn(lambda m, x: torch.outer(m.v, m.w[0]) + x[:, :1]),
    "cosine": fn(lambda m, x: F.cosine_similarity(x, m.w[None], dim=-1)),
    "normalize": fn(lambda m, x: F.normalize(x * m.v, dim=-1)),
    "cdist": fn(lambda m, x: torch.cdist(x, m.w[None].expand(x.shape[0], -1, -1))),
    "pairwise": fn(lambda m, x: F.pairwise_distance(x[:, 0], x[:, 1] * m.s)),
    # convolutions
    "cdist-unbatched": fn(lambda m, x: torch.cdist(x[0], m.w)),
    "quantise": fn(lambda m, x: m.w[torch.cdist(x, m.w).argmin(-1)]),
    "cross": fn(lambda m, x: torch.cross(x[:, :, :3], m.w[None, :, :3], dim=-1)),
    "matrix-norm": fn(lambda m, x: torch.linalg.norm(x * m.v, dim=(1, 2)) + torch.linalg.matrix_norm(x * m.s)),
    "conv1d": layer(seq(lambda: nn.Conv1d(4, 6, 3), nn.ReLU, lambda: nn.Conv1d(6, 4, 3, dilation=2)), LINE),
    "conv2d": layer(seq(lambda: nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU, lambda: nn.Conv2d(6, 4, 3)), IMAGE),
    "conv2d-groups": layer(
        seq(lambda: nn.Conv2d(4, 8, 3, groups=2), nn.ReLU, lambda: nn.Conv2d(8, 8, 3, groups=4)), WIDE
    ),
    "conv2d-depthwise": layer(
        seq(lambda: nn.Conv2d(3, 4, 1), lambda: nn.Conv2d(4, 4, 3, groups=4), lambda: nn.Conv2d(4, 2, 1)), IMAGE
    ),
    "conv2d-depthwise-stem": layer(lambda: nn.Conv2d(4, 8, 3, groups=4), WIDE),
    "conv2d-same": layer(lambda: nn.Conv2d(4, 4, 3, padding="same", dilation=2), WIDE),
    "conv2d-valid": layer(lambda: nn.Conv2d(4, 4, 3, padding="valid"), WIDE),
    "conv2d-reflect": layer(lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), WIDE),
    "conv2d-circular": layer(lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), WIDE),
    "conv3d": layer(seq(lambda: nn.Conv3d(2, 4, 3, padding=1), nn.ELU, lambda: nn.Conv3d(4, 2, 1)), CUBE),
    "conv3d-no-bias": layer(
        seq(lambda: nn.Conv3d(2, 4, 3, bias=False), nn.ReLU, lambda: nn.Conv3d(4, 4, 2, groups=2, bias=False)), CUBE
    ),
    "conv3d-same": layer(lambda: nn.Conv3d(2, 4, (2, 3, 1), padding="same", bias=False), CUBE),
    "conv2d-unbatched": layer(lambda: nn.Conv2d(4, 4, 3, padding=1), "x:float32[4,8,8]"),
    "conv2d-dynamic-size": layer(
        seq(lambda: nn.Conv2d(3, 4, 3, padding=1), nn.ReLU, lambda: nn.Conv2d(4, 2, 1)),
        "x:float32[batch,3,height,width]",
    ),
    "conv2d-channels-last-mlp": layer(
        seq(
            lambda: nn.Conv2d(3, 4, 3, padding=1),
            lambda: Permute(0, 2, 3, 1),
            lambda: nn.LayerNorm(4),
            lambda: nn.Linear(4, 8),
            nn.GELU,
            lambda: nn.Linear(8, 4),
            lambda: Permute(0, 3, 1, 2),
            lambda: nn.Conv2d(4, 2, 1),
        ),
        "x:float32[batch,3,height,width]",
    ),
    "conv-transpose1d": layer(seq(lambda: nn.Conv1d(4, 4, 1), lambda: nn.ConvTranspose1d(4, 6, 4, 2)), LINE),
    "conv-transpose2d": layer(
        seq(lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), nn.ReLU, lambda: nn.ConvTranspose2d(6, 4, 2, 2)), WIDE
    ),
    "conv-transpose2d-groups": layer(
        seq(lambda: nn.Conv2d(4, 4, 1), lambda: nn.ConvTranspose2d(4, 8, 3, groups=2, bias=False)), WIDE
    ),
    "conv-transpose3d": layer(lambda: nn.ConvTranspose3d(2, 3, 2, 2), CUBE),
    "conv-transpose-far-end": layer(
        seq(
            lambda: nn.ConvTranspose2d(4, 6, 3, stride=(1, 2), dilation=(2, 3), padding=(0, 1), output_padding=(1, 2)),
            lambda: nn.ConvTranspose2d(6, 2, 2, dilation=3, output_padding=2),
        ),
        WIDE,
    ),
    "conv-weight-standardised": fn(
        lambda m, x: F.conv1d(
            x, ((m.w - m.w.mean(1, keepdim=True)) / (m.w.var(1, keepdim=True) + 1e-5).sqrt()).reshape(6, 4, 1)
        ),
        LINE,
    ),
    "residual": layer(seq(lambda: nn.Conv2d(3, 4, 3), _Block, _Block), IMAGE),
    "residual-from-input": layer(_Block, WIDE),
    "squeeze-excite": layer(_SqueezeExcite, IMAGE),
    "unet3d": layer(_Unet3d, "x:float32[batch,1,8,8,8]"),
    # norms
    "batchnorm1d": layer(
        seq(lambda: nn.Linear(8, 6), lambda: nn.BatchNorm1d(6), nn.ReLU, lambda: nn.Linear(6, 2)), ROWS
    ),
    "batchnorm1d-line": layer(
        seq(lambda: nn.BatchNorm1d(4), lambda: nn.Conv1d(4, 4, 3), lambda: nn.BatchNorm1d(4, affine=False)), LINE
    ),
    "batchnorm2d": layer(seq(lambda: nn.Conv2d(3, 4, 3), lambda: nn.BatchNorm2d(4), nn.ReLU6), IMAGE),
    "batchnorm2d-first": layer(seq(lambda: nn.BatchNorm2d(3), lambda: nn.Conv2d(3, 4, 3)), IMAGE),
    "batchnorm3d": layer(seq(lambda: nn.Conv3d(2, 4, 3), lambda: nn.BatchNorm3d(4)), CUBE),
    "batchnorm-batch-statistics": layer(
        seq(lambda: nn.Conv2d(3, 4, 3), lambda: nn.BatchNorm2d(4, track_running_stats=False)), IMAGE
    ),
    "layernorm": layer(seq(lambda: nn.Linear(8, 6), lambda: nn.LayerNorm(6), lambda: nn.Linear(6, 4)), TOKENS),
    "layernorm-first": layer(seq(lambda: nn.LayerNorm(8), lambda: nn.Linear(8, 4)), TOKENS),
    "layernorm-plain": layer(seq(lambda: nn.Linear(8, 6), lambda: nn.LayerNorm(6, elementwise_affine=False)), TOKENS),
    "layernorm-image": layer(seq(lambda: nn.Conv2d(4, 4, 1), lambda: nn.LayerNorm((4, 8, 8))), WIDE),
    "layernorm-channels-last": fn(lambda m, x: m.n(m.c(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), WIDE),
    "rmsnorm": layer(seq(lambda: nn.Linear(8, 6), lambda: nn.RMSNorm(6)), TOKENS),
    "groupnorm": layer(seq(lambda: nn.Conv2d(3, 8, 3), lambda: nn.GroupNorm(2, 8), nn.SiLU), IMAGE),
    "groupnorm-first": layer(lambda: nn.GroupNorm(2, 4), WIDE),
    "groupnorm-rows": layer(seq(lambda: nn.Linear(8, 6), lambda: nn.GroupNorm(3, 6)), ROWS),
    "instancenorm1d": layer(seq(lambda: nn.Conv1d(4, 4, 1), lambda: nn.InstanceNorm1d(4, affine=True)), LINE),
    "instancenorm2d": layer(seq(lambda: nn.Conv2d(3, 4, 3), lambda: nn.InstanceNorm2d(4)), IMAGE),
    "instancenorm2d-running": layer(
        seq(lambda: nn.Conv2d(3, 4, 3), lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), IMAGE
    ),
    "localresponsenorm": layer(seq(lambda: nn.Conv2d(3, 4, 3), lambda: nn.LocalResponseNorm(2)), IMAGE),
    # pools
    "maxpool1d": layer(seq(lambda: nn.Conv1d(4, 4, 1), lambda: nn.MaxPool1d(3, 2, 1)), LINE),
    "maxpool2d": layer(seq(lambda: nn.Conv2d(3, 4, 3), lambda: nn.MaxPool2d(3, 2, ceil_mode=True)), IMAGE),
    "maxpool2d-input": fn(lambda m, x: F.max_pool2d(x, 2) * m.s, IMAGE),
    "maxpool3d": layer(seq(lambda: nn.Conv3d(2, 4, 1), lambda: nn.MaxPool3d(2)), CUBE),
    "avgpool1d": layer(seq(lambda: nn.Conv1d(4, 4, 1), lambda: nn.AvgPool1d(3, 2, 1)), LINE),
    "avgpool2d": layer(seq(lambda: nn.Conv2d(3, 4, 3), lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False)), IMAGE),
    "avgpool2d-ceil": layer(seq(lambda: nn.Conv2d(3, 4, 3), lambda: nn.AvgPool2d(3, 2, ceil_mode=True)), IMAGE),
    "avgpool3d": layer(seq(lambda: nn.Conv3d(2, 4, 1), lambda: nn.AvgPool3d(2)), CUBE),
    "avgpool2d-divisor": layer(
        seq(lambda: nn.Conv2d(3, 4, 3), lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=5)), IMAGE
    ),
    "avgpool3d-divisor": layer(
        seq(lambda: nn.Conv3d(2, 4, 1), lambda: nn.AvgPool3d(2, 3, 1, divisor_override=3)), CUBE
    ),
    "adaptive-avgpool1d": layer(seq(lambda: nn.Conv1d(4, 4, 1), lambda: nn.AdaptiveAvgPool1d(4)), LINE),
    "adaptive-avgpool2d": layer(
        seq(lambda: nn.Conv2d(3, 4, 1), lambda: nn.AdaptiveAvgPool2d(1), nn.Flatten, lambda: nn.Linear(4, 2)), IMAGE
    ),
    "adaptive-avgpool2d-grid": layer(
        seq(lambda: nn.Conv2d(3, 4, 1), lambda: nn.AdaptiveAvgPool2d((3, 4)), nn.Flatten, lambda: nn.Linear(48, 2)),
        IMAGE,
    ),
    "adaptive-avgpool3d": layer(seq(lambda: nn.Conv3d(2, 4, 1), lambda: nn.AdaptiveAvgPool3d(2)), CUBE),
    "adaptive-maxpool2d": layer(seq(lambda: nn.Conv2d(3, 4, 1), lambda: nn.AdaptiveMaxPool2d(1)), IMAGE),
    "adaptive-maxpool1d-grid": layer(seq(lambda: nn.Conv1d(4, 4, 1), lambda: nn.AdaptiveMaxPool1d(3)), LINE),
    "adaptive-maxpool2d-grid": layer(
        seq(lambda: nn.Conv2d(3, 4, 1), lambda: nn.AdaptiveMaxPool2d((5, 3), return_indices=True)), IMAGE
    ),
    "adaptive-maxpool2d-any-size": layer(
        seq(lambda: nn.Conv2d(3, 4, 1), lambda: nn.AdaptiveMaxPool2d((2, 3))), "x:float32[batch,3,height,width]"
    ),
    "adaptive-avgpool2d-any-size": layer(
        seq(lambda: nn.Conv2d(3, 4, 1), lambda: nn.AdaptiveAvgPool2d((2, 3))), "x:float32[batch,3,height,width]"
    ),
    "adaptive-avgpool2d-one-kept": layer(
        seq(lambda: nn.Conv2d(3, 4, 1), lambda: nn.AdaptiveAvgPool2d((None, 2))), "x:float32[batch,3,height,width]"
    ),
    "adaptive-avgpool3d-any-size": layer(
        seq(lambda: nn.Conv3d(2, 4, 1), lambda: nn.AdaptiveAvgPool3d((1, 2, 3))),
        "x:float32[batch,2,depth,height,width]",
    ),
    "adaptive-avgpool1d-any-size": layer(
        seq(lambda: nn.Conv1d(4, 4, 1), lambda: nn.AdaptiveAvgPool1d(3)), "x:float32[batch,4,length]"
    ),
    "adaptive-maxpool3d-grid": layer(seq(lambda: nn.Conv3d(2, 4, 1), lambda: nn.AdaptiveMaxPool3d((1, 2, 4))), CUBE),
    "lppool2d": layer(seq(lambda: nn.Conv2d(3, 4, 1), lambda: nn.LPPool2d(2, 2)), IMAGE),
    "maxunpool2d": fn(lambda m, x: F.max_unpool2d(*F.max_pool2d(m.c(x), 2, return_indices=True), 2), WIDE),
    "maxunpool1d": fn(lambda m, x: F.max_unpool1d(*F.max_pool1d(x * m.s, 2, return_indices=True), 2), LINE),
    "maxunpool3d": fn(lambda m, x: F.max_unpool3d(*F.max_pool3d(x * m.s, 2, return_indices=True), 2), CUBE),
    "lppool1d": fn(lambda m, x: F.lp_pool1d(x * m.s, 2, 2), LINE),
    "global-mean": fn(lambda m, x: m.c(x).mean((2, 3)) @ m.w, WIDE),
    "global-max": fn(lambda m, x: m.c(x).amax((2, 3)) @ m.w, WIDE),
    # resizing
    "upsample-nearest": layer(seq(lambda: nn.Conv2d(3, 4, 1), lambda: nn.Upsample(scale_factor=2)), IMAGE),
    "upsample-bilinear": layer(
        seq(lambda: nn.Conv2d(3, 4, 1), lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)),
        IMAGE,
    ),
    "upsample-bicubic": layer(
        seq(lambda: nn.Conv2d(3, 4, 1), lambda: nn.Upsample(size=(20, 20), mode="bicubic")), IMAGE
    ),
    "upsample-linear": layer(seq(lambda: nn.Conv1d(4, 4, 1), lambda: nn.Upsample(scale_factor=2, mode="linear")), LINE),
    "upsample-trilinear": layer(
        seq(lambda: nn.Conv3d(2, 4, 1), lambda: nn.Upsample(scale_factor=2, mode="trilinear")), CUBE
    ),
    "interpolate-to-input": fn(
        lambda m, x: F.interpolate(F.avg_pool2d(m.c(x), 2), size=x.shape[-2:], mode="bilinear"),
        "x:float32[batch,4,height,width]",
    ),
    "pixel-shuffle": layer(seq(lambda: nn.Conv2d(3, 8, 1), lambda: nn.PixelShuffle(2)), IMAGE),
    "pixel-unshuffle": layer(seq(lambda: nn.Conv2d(3, 4, 1), lambda: nn.PixelUnshuffle(2)), IMAGE),
    "channel-shuffle": layer(seq(lambda: nn.Conv2d(3, 8, 1), lambda: nn.ChannelShuffle(2)), IMAGE),
    "pad-constant": fn(lambda m, x: F.pad(m.c(x), (1, 2, 0, 1), value=0.5), WIDE),
    "pad-reflect": layer(seq(lambda: nn.Conv2d(3, 4, 1), lambda: nn.ReflectionPad2d(1)), IMAGE),
    "pad-replicate": layer(seq(lambda: nn.Conv2d(3, 4, 1), lambda: nn.ReplicationPad2d(1)), IMAGE),
    "unfold": layer(seq(lambda: nn.Conv2d(3, 4, 1), lambda: nn.Unfold(3)), IMAGE),
    "fold": fn(lambda m, x: F.fold(x.transpose(1, 2).repeat(1, 2, 1)[:, :12] * m.s, (3, 3), 2), "x:float32[batch,4,6]"),
    "grid-sample": fn(
        lambda m, x, g: F.grid_sample(m.c(x), g * m.s, align_corners=False), WIDE, "g:float32[batch,5,5,2]"
    ),
    # embeddings
    "spatial-transformer": fn(
        lambda m, x: F.grid_sample(
            x,
            F.affine_grid(m.w[:2, :3] * x.mean((1, 2, 3))[:, None, None], list(x.shape), align_corners=False),
            align_corners=False,
        ),
        WIDE,
    ),
    "embedding": layer(seq(lambda: nn.Embedding(9, 8), lambda: nn.Linear(8, 4)), IDS),
    "embedding-rows": layer(lambda: nn.Embedding(9, 8, padding_idx=0), "ids:int64[batch]"),
    "embedding-bag": layer(lambda: nn.EmbeddingBag(9, 8, mode="mean"), "ids:int64[batch,5]"),
    "embedding-bag-max": layer(lambda: nn.EmbeddingBag(9, 8, mode="max", padding_idx=1), "ids:int64[batch,5]"),
    "embedding-bag-sum": layer(lambda: nn.EmbeddingBag(9, 8, mode="sum", padding_idx=0), "ids:int64[batch,5]"),
    "embedding-bag-weighted": fn(
        lambda m, ids: F.embedding_bag(ids, m.w.t(), per_sample_weights=ids * m.s, mode="sum"), "ids:int64[batch,5]"
    ),
    "embedding-bag-offsets": fn(
        lambda m, ids, n: F.embedding_bag(ids, m.w.t(), n.cumsum(0) * 0, mode="sum"),
        "ids:int64[total]",
        "n:int64[batch]",
        steps=frozenset({"unroll_op"}),
    ),
    "positions": fn(lambda m, x: x + m.w[: x.shape[1]][None], "x:float32[batch,4,6]"),
    "one-hot": fn(lambda m, ids: F.one_hot(ids, 6).float() @ m.w.t(), IDS),
    # attention
    "one-hot-own": fn(lambda m, x: F.one_hot((x * m.v).argmax(-1), 6)),
    "attention": layer(_Attention, TOKENS),
    "attention-causal": layer(lambda: _Attention(causal=True), TOKENS),
    "attention-grouped": layer(lambda: _Attention(heads=4, kv=2), TOKENS),
    "attention-rotary": layer(_Rotary, TOKENS),
    "multihead": layer(_MHA, TOKENS),
    "multihead-padding": layer(lambda: _MHA(masked=True), TOKENS, "mask:bool[batch,seq]", only_shared=("mask",)),
    "multihead-causal": layer(lambda: _MHA(causal=True), TOKENS),
    "encoder-layer": layer(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), TOKENS),
    "decoder-layer": layer(
        lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), TOKENS, "memory:float32[batch,seq2,8]"
    ),
    "encoder": layer(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), TOKENS),
    "tied-language-model": layer(_Tied, IDS),
    "window-attention": layer(_Window, "x:float32[batch,4,4,6]"),
    # recurrent
    "lstm": layer(lambda: _Recurrent(nn.LSTM, batch_first=True), "x:float32[batch,time,5]"),
    "lstm-final": layer(_Final, "ids:int64[batch,time]"),
    "gru": layer(lambda: _Recurrent(nn.GRU, batch_first=True, bidirectional=True), "x:float32[batch,time,5]"),
    "gru-time-first": layer(lambda: _Recurrent(nn.GRU, num_layers=2), "x:float32[time,batch,5]"),
    "rnn": layer(lambda: _Recurrent(nn.RNN, batch_first=True), "x:float32[batch,time,5]"),
    "rnn-relu": layer(lambda: _Recurrent(nn.RNN, batch_first=True, nonlinearity="relu"), "x:float32[batch,time,5]"),
    "lstm-cell": fn(lambda m, x: m.cell(x, (x[:, :4] * m.s, x[:, :4]))[0], "x:float32[batch,6]"),
    "gru-cell": fn(lambda m, x: m.cell(x, x[:, :4]), "x:float32[batch,6]"),
    # joining, splitting, indexing
    "rnn-cell": layer(lambda: nn.RNNCell(8, 4), ROWS),
    "rnn-cell-relu": layer(lambda: nn.RNNCell(8, 4, nonlinearity="relu", bias=False), ROWS),
    "lstm-cell-first": layer(lambda: nn.LSTMCell(8, 4), ROWS),
    "cat-channels": fn(lambda m, x: torch.cat([m.c(x), m.c(x) * 2], 1), WIDE),
    "cat-shared": fn(lambda m, x: torch.cat([m.c(x), x], 1), WIDE),
    "cat-rows": fn(lambda m, x: torch.cat([x * m.v, x], 0)),
    "cat-token": fn(lambda m, x: torch.cat([m.v.expand(x.shape[0], 1, 6), x], 1)),
    "stack": fn(lambda m, x: torch.stack([x * m.v, x], 1)),
    "split": fn(lambda m, x: tuple((x * m.v).split([2, 4], 2))),
    "tensor-split": fn(lambda m, x: tuple((x * m.v).tensor_split((2, 3), 2))),
    "hstack": fn(lambda m, x: torch.hstack([x * m.v, x]) + torch.vstack([m.w, m.w])),
    "chunk": fn(lambda m, x: (lambda a, b: a * b.sigmoid())(*(x * m.v).chunk(2, 2))),
    "chunk-channels": fn(lambda m, x: (lambda a, b: a * b.sigmoid())(*m.c(x).chunk(2, 1)), WIDE),
    "unbind": fn(lambda m, x: sum((x * m.v).unbind(1))),
    "expand": fn(lambda m, x: m.v.expand(x.shape[0], 4, 6) + x),
    "repeat": fn(lambda m, x: (x * m.v).repeat(1, 2, 1)),
    "repeat-interleave": fn(lambda m, x: (x * m.v).repeat_interleave(2, 1)),
    "tile": fn(lambda m, x: m.v.tile((2,)) * x.repeat(1, 1, 2)),
    "select": fn(lambda m, x: (x * m.v)[:, 0]),
    "tile-activation": fn(lambda m, x: (x * m.v).tile(2) + torch.tile(x * m.s, (2, 1, 2))[: x.shape[0]]),
    "rows-weight": fn(lambda m, x: m.v * F.rms_norm(F.linear(x, m.w, None) @ m.w, (6,)).relu()),
    "slice": fn(lambda m, x: (x * m.v)[:, 1:3, ::2]),
    "narrow": fn(lambda m, x: (x * m.v).narrow(2, 1, 3)),
    "index": fn(lambda m, x: (x * m.v)[:, torch.tensor([0, 2])]),
    "index-weight": fn(lambda m, ids: m.w.t()[ids], "ids:int64[batch,5]"),
    "index-two": fn(lambda m, x: (x * m.v)[:, torch.tensor([0, 2]), torch.tensor([1, 3])]),
    "index-select": fn(lambda m, x: (x * m.v).index_select(2, torch.tensor([5, 0]))),
    "gather": fn(lambda m, x, ids: (x * m.v).gather(2, ids), F2, "ids:int64[batch,4,2]"),
    "gather-weight": fn(lambda m, ids: m.v.expand(ids.shape[0], 6).gather(1, ids), "ids:int64[batch,3]"),
    "scatter": fn(
        lambda m, x, ids: (x * m.v).scatter(2, ids, x[:, :, :2]), F2, "ids:int64[batch,4,2]", only_shared=("ids",)
    ),
    "scatter-add": fn(lambda m, x, ids: (x * m.v).scatter_add(2, ids, x[:, :, :2] * m.s), F2, "ids:int64[batch,4,2]"),
    "index-add": fn(lambda m, x: (x * m.v).index_add(2, torch.tensor([0, 2]), x[:, :, :2])),
    "index-put": fn(lambda m, x: _put(x * m.v)),
    "index-put-two": fn(lambda m, x: _put_two(x * m.v, m.v)),
    "index-put-rows": fn(
        lambda m, x, ids: (x * m.v).transpose(0, 1).index_put((ids,), x[0, :1] * m.s), F2, "ids:int64[2]"
    ),
    "index-put-add": fn(
        lambda m, x, ids: (x[0] * m.v).index_put((ids,), x[0, 0] * m.s, accumulate=True), F2, "ids:int64[batch,5]"
    ),
    "index-put-mask": fn(lambda m, x: _put_mask(x * m.v)),
    "index-copy": fn(lambda m, x: (x * m.v).index_copy(2, torch.tensor([0, 2]), x[:, :, :2])),
    "index-rows-own": fn(lambda m, x: (lambda y: y[torch.arange(y.shape[0]), y.sum(-1).argmax(-1)])(x * m.v)),
    "select-assign": fn(lambda m, x: _assign_selected(x * m.v, m.s)),
    "slice-assign": fn(lambda m, x: _assign(x * m.v)),
    "masked-fill": fn(lambda m, x: (x * m.v).masked_fill(x > 0.5, -1.0)),
    "where": fn(lambda m, x: torch.where(x > m.s, x * m.v, 0.0)),
    "triu": fn(lambda m, x: (x * m.v).triu(1) + x.tril()),
    "sort": fn(lambda m, x: (x * m.v).sort(-1)[0]),
    "argsort": fn(lambda m, x: (x * m.v).argsort(-1)),
    "topk": fn(lambda m, x: tuple((x * m.v).topk(3, -1))),
    "argmax": fn(lambda m, x: (x * m.v).argmax(-1)),
    "max-dim": fn(lambda m, x: tuple((x * m.v).max(1))),
    "cumsum": fn(lambda m, x: (x * m.v).cumsum(1)),
    "roll": fn(lambda m, x: (x * m.v).roll(2, 1)),
    "flip": fn(lambda m, x: (x * m.v).flip(1, 2)),
    "rot90": fn(lambda m, x: torch.rot90(x * m.v, 1, (1, 2))),
    "meshgrid": fn(lambda m, x: sum(torch.meshgrid(m.v, torch.arange(4.0), indexing="ij")).t() + x),
    "meshgrid-xy": fn(lambda m, x: torch.stack(torch.meshgrid(m.v, torch.arange(4.0), x[0, 0], indexing="xy"))),
    "movedim": fn(lambda m, x: (x * m.v).movedim(1, 2)),
    "swapaxes": fn(lambda m, x: (x * m.v).swapaxes(1, 2)),
    "view-as": fn(lambda m, x: (x * m.v).view_as(x) + m.v.expand_as(x) + torch.broadcast_tensors(m.v, x)[0]),
    "unflatten": fn(lambda m, x: (x * m.v).unflatten(2, (2, 3))),
    "squeeze": fn(lambda m, x: (x[:, :1] * m.v).squeeze(1).unsqueeze(-1)),
    "view-merge-batch": fn(lambda m, x: (x * m.v).reshape(-1, 6) @ m.w.t()),
    "view-split": fn(lambda m, x: (x @ m.w.t()).view(x.shape[0], 2, 2, 4).flatten(1)),
    "diagonal": fn(lambda m, x: torch.diagonal(x * m.v, dim1=1, dim2=2)),
    # elementwise and reductions
    "activations": fn(
        lambda m, x: sum(
            f(x * m.v)
            for f in (
                F.relu,
                F.gelu,
                F.silu,
                F.mish,
                F.elu,
                F.softplus,
                F.hardswish,
                F.hardsigmoid,
                F.leaky_relu,
                F.logsigmoid,
                F.tanhshrink,
                F.celu,
                F.selu,
            )
        )
    ),
    "prelu": layer(seq(lambda: nn.Conv2d(3, 4, 1), lambda: nn.PReLU(4)), IMAGE),
    "prelu-one": layer(seq(lambda: nn.Linear(8, 4), nn.PReLU), ROWS),
    "glu": layer(seq(lambda: nn.Linear(8, 6), nn.GLU), ROWS),
    "softmax": fn(lambda m, x: (x * m.v).softmax(-1) + (x * m.v).log_softmax(1) + F.softmin(x * m.s, 2)),
    "softmax2d": layer(seq(lambda: nn.Conv2d(3, 4, 1), nn.Softmax2d), IMAGE),
    "scale": fn(lambda m, x: x * m.s + m.s),
    "layer-scale": fn(lambda m, x: m.c(x) * m.v[:4].view(1, 4, 1, 1), WIDE),
    "channel-bias": fn(lambda m, x: m.c(x) + m.v[:4, None, None], WIDE),
    "pow": fn(lambda m, x: (x * m.v).pow(2).mean(-1).sqrt() + x.abs().pow(1.5).sum(-1)),
    "clamp": fn(lambda m, x: (x * m.v).clamp(-0.5, 0.5)),
    "clamp-weight": fn(lambda m, x: torch.minimum(x, m.v).clamp(min=m.w[0])),
    "sum-all": fn(lambda m, x: (x * m.v).sum((1, 2)) + (x * m.s).sum()),
    "var": fn(lambda m, x: (x * m.v).var(-1, keepdim=True) + (x * m.s).std(-1, unbiased=False, keepdim=True)),
    "var-mean": fn(lambda m, x: sum(torch.var_mean(x * m.v, dim=-1))),
    "norm": fn(lambda m, x: (x * m.v).norm(dim=-1) + torch.linalg.vector_norm(x, 1, -1) * m.s),
    "losses": fn(
        lambda m, x: F.mse_loss(x * m.v, x) + F.smooth_l1_loss(x * m.v, x) + F.l1_loss(x * m.v, x, reduction="none")
    ),
    "logsumexp": fn(lambda m, x: (x * m.v).logsumexp(-1)),
    "prod": fn(lambda m, x: (x * m.v).prod(-1)),
    "any-all": fn(lambda m, x: ((x * m.v) > 0).any(-1) & ((x * m.v) > -9).all(-1)),
    "compare": fn(lambda m, x: ((x * m.v) > x).float() + (x >= m.s).int()),
    "trig": fn(lambda m, x: torch.sin(x * m.v) + torch.cos(x) * torch.atan2(x, m.v) + torch.erf(x * m.s)),
    "half-inside": fn(lambda m, x: (x.to(torch.float64) * m.v).float()),
    "zeros-new": fn(lambda m, x: torch.zeros(x.shape[0], 6) + x.new_ones(1, 6) * m.v),
    "arange": fn(lambda m, x: x * m.v + torch.arange(x.shape[2], device=x.device)),
    "buffer-constant": fn(lambda m, x: x * m.k + m.v, k=torch.arange(6.0)),
    # whole models and parametrisations
    "weight-norm": layer(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)), ROWS),
    "spectral-norm": layer(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 4)), ROWS),
    "two-inputs": layer(_Two, "image:float32[batch,6]", "table:float32[batch,3]", only_shared=("table",)),
    "deepsets": fn(lambda m, x: (x @ m.w.t()).relu().sum(1) @ m.w),
    "dueling": fn(
        lambda m, x: (lambda a, v: v + a - a.mean(-1, keepdim=True))(x[:, 0] @ m.w.t(), x[:, 0] @ m.v[:, None])
    ),
    "mixture": fn(lambda m, x: ((x @ m.w.t()).softmax(-1)[..., None] * (x[:, :, None] * m.w)).sum(2)),
    "output-is-input": fn(lambda m, x: (x, x * m.v)),
    "output-is-weight": fn(lambda m, x: (m.w, x * m.v)),
    "same-output-twice": fn(lambda m, x: (lambda y: (y, y))(x * m.v)),
}

for _name, _row in list(TABLE.items()):
    # Rows that call `m.c`, `m.n` or `m.cell` get those layers.
    if isinstance(_row.build, type(lambda: None)) and _name in {
        "layernorm-channels-last", "maxunpool2d", "global-mean", "global-max", "interpolate-to-input", "pad-constant",
        "grid-sample", "cat-channels", "cat-shared", "chunk-channels", "layer-scale", "channel-bias", "lstm-cell",
        "gru-cell",
    }:  # fmt: skip

        def _with_layers(build: Callable[[], nn.Module] = _row.build, name: str = _name) -> nn.Module:
            module = build()
            module.c, module.n = nn.Conv2d(4, 4, 1), nn.LayerNorm(4)
            if name.endswith("-cell"):
                module.cell = nn.LSTMCell(6, 4) if name == "lstm-cell" else nn.GRUCell(6, 4)
            return module

        TABLE[_name] = replace(_row, build=_with_layers)


def _put(x: Tensor) -> Tensor:
    x[:, torch.tensor([0, 2])] = 1.0
    return x


def _put_two(x: Tensor, v: Tensor) -> Tensor:
    x[:, torch.tensor([0, 2]), torch.tensor([1, 3])] = v[:2]
    return x


def _put_mask(x: Tensor) -> Tensor:
    x[x > 0.5] = 0.25
    return x


def _assign_selected(x: Tensor, s: Tensor) -> Tensor:
    x[:, 0] = 1.0
    x[..., -1] += x[..., 1] * s
    return x


def _assign(x: Tensor) -> Tensor:
    x[:, 1:3] = x[:, :2] * 2
    return x


def make_member(row: Row, seed: int) -> nn.Module:
    """Return a member in eval mode in which every weight and every running statistic is random."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    module = row.build().eval()
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point() and not name.endswith(("freq", "k", "_u", "_v")):
                values = torch.rand(tensor.shape, generator=generator) + 0.5
                sign = 1.0 if name.endswith(("running_var", "original0")) else torch.sign(values - 0.8)
                tensor.copy_(values * sign * (0.4 if tensor.dim() > 1 else 1.0))
    return module


# Dims with an end that only running the model tells (a position table of 16 rows).
FIXED = {"tied-language-model": ("seq",)}
