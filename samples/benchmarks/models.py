"""The networks of the standard set, in plain PyTorch: the published architectures with random weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


def mlp() -> nn.Module:
    """784-128-128-10, the network of PyTorch's model-ensembling tutorial."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def lenet() -> nn.Module:
    """LeNet-5 with ReLU and max pooling, for 3x32x32 images."""
    features = [nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*features, *head)


class _Residual(nn.Module):
    """`relu(body(x) + shortcut(x))`, the basic (two 3x3) or the bottleneck (1x1, 3x3, 1x1) form."""

    def __init__(self, channels: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        out = width * 4 if bottleneck else width
        if bottleneck:
            self.body = nn.Sequential(
                _conv(channels, width, 1), nn.ReLU(), _conv(width, width, 3, stride), nn.ReLU(), _conv(width, out, 1)
            )
        else:
            self.body = nn.Sequential(_conv(channels, width, 3, stride), nn.ReLU(), _conv(width, out, 3))
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else _conv(channels, out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def _conv(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


def _resnet(depths: Sequence[int], *, bottleneck: bool) -> nn.Module:
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for block in range(depth):
            stride = 2 if stage and not block else 1
            layers.append(_Residual(channels, width, stride, bottleneck=bottleneck))
            channels = width * 4 if bottleneck else width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def resnet18() -> nn.Module:
    """ResNet-18 (He et al., 2015)."""
    return _resnet((2, 2, 2, 2), bottleneck=False)


def resnet50() -> nn.Module:
    """ResNet-50 with the stride in the 3x3 convolution."""
    return _resnet((3, 4, 6, 3), bottleneck=True)


class _Inverted(nn.Module):
    """MobileNetV3's block: expand, depthwise, squeeze-and-excite, project."""

    def __init__(
        self, channels: int, kernel: int, hidden: int, out: int, *, squeeze: bool, hard: bool, stride: int
    ) -> None:
        super().__init__()
        self.is_residual = stride == 1 and channels == out
        act = nn.Hardswish if hard else nn.ReLU
        self.expand = nn.Sequential(_conv(channels, hidden, 1), act()) if hidden != channels else nn.Identity()
        self.depthwise = nn.Sequential(_conv(hidden, hidden, kernel, stride, groups=hidden), act())
        inner = max(8, (hidden // 4 + 4) // 8 * 8)
        self.excite = (
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(hidden, inner, 1),
                nn.ReLU(),
                nn.Conv2d(inner, hidden, 1),
                nn.Hardsigmoid(),
            )
            if squeeze
            else None
        )
        self.project = _conv(hidden, out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(self.expand(x))
        if self.excite is not None:
            y = y * self.excite(y)
        y = self.project(y)
        return x + y if self.is_residual else y


def mobilenetv3_small() -> nn.Module:
    """MobileNetV3-Small 1.0 (Howard et al., 2019, table 2)."""
    rows = [  # kernel, hidden, out, squeeze, hard swish, stride
        (3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2), (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1), (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1),
    ]  # fmt: skip
    layers: list[nn.Module] = [_conv(3, 16, 3, 2), nn.Hardswish()]
    channels = 16
    for kernel, hidden, out, squeeze, hard, stride in rows:
        layers.append(_Inverted(channels, kernel, hidden, out, squeeze=squeeze, hard=hard, stride=stride))
        channels = out
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(576, 1024), nn.Hardswish(), nn.Linear(1024, 1000)]
    return nn.Sequential(*layers, _conv(96, 576, 1), nn.Hardswish(), *head)


class _PreNorm(nn.Module):
    """A pre-norm transformer block with one layer for query, key and value, as ViTs have it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer on 224x224 images, patches of 16 (Dosovitskiy et al., 2020)."""

    def __init__(self, width: int, heads: int, depth: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 197, width) * 0.02)
        self.blocks = nn.Sequential(*(_PreNorm(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, 3, 224, 224) -> (B, 1000)`."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit_tiny() -> nn.Module:
    """ViT-Ti/16: width 192, 3 heads."""
    return ViT(192, 3)


def vit_base() -> nn.Module:
    """ViT-B/16: width 768, 12 heads."""
    return ViT(768, 12)


class _PostNorm(nn.Module):
    """BERT's block: separate query, key and value, the norm behind the sum."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.proj(attended))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    """BERT-base in shape, with the pooled output (Devlin et al., 2018); a vocabulary of 8,000 keeps files small."""

    def __init__(self, width: int = 768, heads: int = 12, depth: int = 12, words: int = 8000) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, width), nn.Parameter(torch.randn(128, width) * 0.02)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.Sequential(*(_PostNorm(width, heads) for _ in range(depth)))
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """`(B, 128) -> (B, 2)`."""
        x = self.blocks(self.norm(self.words(ids) + self.positions))
        return self.head(torch.tanh(self.pooler(x[:, 0])))


def bert_base() -> nn.Module:
    """BERT-base for sequences of 128."""
    return Bert()


class Lstm(nn.Module):
    """Two LSTM layers of 256 over 64 steps of 32 features, and a head on the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(32, 256, num_layers=2, batch_first=True), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, T, 32) -> (B, 10)`."""
        return self.head(self.lstm(x)[0][:, -1])


class UNet3d(nn.Module):
    """A small 3-D U-Net as nnU-Net builds them: two convolutions a level, instance norm, leaky ReLU."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64), classes: int = 3) -> None:
        super().__init__()
        before = (1, *widths[:-1])
        self.down = nn.ModuleList(
            self._level(a, b, 2 if k else 1) for k, (a, b) in enumerate(zip(before, widths, strict=True))
        )
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose3d(a, b, 2, 2) for a, b in pairs)
        self.join = nn.ModuleList(self._level(2 * b, b, 1) for _, b in pairs)
        self.head = nn.Conv3d(widths[0], classes, 1)

    @staticmethod
    def _level(channels: int, width: int, stride: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for number in range(2):
            layers += [
                nn.Conv3d(width if number else channels, width, 3, 1 if number else stride, 1),
                nn.InstanceNorm3d(width, affine=True),
                nn.LeakyReLU(0.01),
            ]
        return nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, 1, D, H, W) -> (B, classes, D, H, W)`, sizes multiples of 4."""
        levels = []
        for level in self.down:
            x = level(x)
            levels.append(x)
        for up, join, skip in zip(self.up, self.join, levels[-2::-1], strict=True):
            x = join(torch.cat([up(x), skip], 1))
        return self.head(x)
