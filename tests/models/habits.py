"""What people write in forward; at the end, what cannot be packed."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Habits(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(6, 6)
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("table", torch.arange(6).float(), persistent=False)

    def forward(self, x):
        b = x.shape[0]
        y = self.f(x)
        y += 1
        y = y.relu_()
        z = torch.zeros(b, 6, device=x.device)
        z[:, 0] = y[:, 1]
        z[:, 1:4] += y[:, ::2]
        z[:, -1].add_(y[:, 0])
        m = torch.where(y > 1.0, y, 0.0)
        n = torch.where(y > 0.5, 1.0, -1.0)
        p = F.pad(y, (1, 2), value=-1.0)
        a, c = y.chunk(2, 1)
        d = y.split([1, 2, 3], 1)
        u = y.unbind(1)
        w = y.masked_fill(y < 0.3, float("-inf")).softmax(-1)
        w = torch.nan_to_num(w)
        s = y / (y.norm(dim=1, keepdim=True) + 1e-6)
        t = y.repeat(1, 2).view(b, 2, 6).sum(1) * self.steps + self.table
        r = torch.arange(b, device=x.device)[:, None] * 0.01 + y
        q = torch.full_like(y, 2.0) ** y.clamp(max=3)
        k = y[..., [0, 2, 4]] + y[:, torch.tensor([1, 3, 5])]
        ends = torch.stack([u[0], u[-1]], -1).flip(-1)
        return torch.cat([z, m, n, p, a - c, d[2], d[0], w, s, t, r, q, k, ends], 1)


class Ints(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(6, 6)

    def forward(self, x):
        y = self.f(x)
        v, i = y.sort(dim=-1, descending=True)
        tv, ti = y.topk(3, -1)
        mx, mi = y.max(dim=0)
        return {
            "sorted": v,
            "order": i,
            "top": tv,
            "top_i": ti,
            "arg": y.argmax(-1),
            "best": mx,
            "best_i": mi,
            "positive": y > 0,
            "all": (y > -3).all(),
            "count": (y > 0).sum(-1),
            "rounded": y.round().to(torch.int32),
            "cs": y.cumsum(0),
            "u8": (y > 0).to(torch.uint8),
            "bucket": torch.bucketize(y, torch.linspace(-1, 1, 5)),
            "am": y.argmin(dim=0),
            "onehot": F.one_hot(y.argmax(-1), 6),
        }


class IndexAssign(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)
        self.w = nn.Parameter(torch.randn(4))

    def forward(self, x, keep):
        y = self.f(x)
        y[:, 0] = self.w[0]
        y[:, 1:3] = 0
        y[~keep] = -1.0
        y[..., -1] *= 2
        out = torch.empty(x.shape[0], 2, 4)
        out[:, 0], out[:, 1] = x, y
        return out


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.ParameterList([nn.Parameter(torch.randn(4, 4)) for _ in range(2)])
        self.d = nn.ParameterDict({"b": nn.Parameter(torch.randn(4))})
        self.bil = nn.Bilinear(4, 4, 3)
        self.pre = nn.PReLU(4)
        self.bn = nn.BatchNorm1d(4, affine=False)

    def forward(self, x):
        for w in self.p:
            x = self.pre(x @ w + self.d["b"])
        x = self.bn(x)
        y = self.bil(x, x.flip(0))
        dist = torch.cdist(x, self.p[0])
        return (
            y,
            dist,
            F.cosine_similarity(x[:, None], self.p[1][None], dim=-1),
            torch.linalg.vector_norm(x, dim=1),
            F.gumbel_softmax(x, hard=False) if self.training else torch.addmm(self.d["b"], x, self.p[0]),
        )


class Fourier(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("B", torch.randn(3, 8))
        self.net = nn.Sequential(nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 2))
        self.t = nn.Linear(8, 16)

    def forward(self, x, t):
        p = 2 * math.pi * x @ self.B
        h = torch.cat([p.sin(), p.cos()], -1)
        half = 4
        freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        e = t[:, None].float() * freqs[None]
        h = h + self.t(torch.cat([torch.cos(e), torch.sin(e)], -1))
        return self.net(h)


class FFTNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 5))

    def forward(self, x):
        f = torch.fft.rfft(x, dim=-1)
        return f.abs()[..., :5] @ self.w.T


class MutMul(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(6, 6)

    def forward(self, x):
        for i in range(3):
            x = self.f(x) if i % 2 == 0 else torch.tanh(x)
        h = torch.matmul(x.unsqueeze(2), x.unsqueeze(1)).reshape(x.size(0), -1)
        return (
            torch.baddbmm(h.view(-1, 6, 6), h.view(-1, 6, 6), h.view(-1, 6, 6)).diagonal(dim1=1, dim2=2),
            torch.einsum("bi,bj->bij", x, x).triu(),
            torch.kron(x[0], x[0]) if x.shape[0] < 0 else x.prod(1),
        )


class BufferIn(nn.Module):
    """num_batches_tracked, integer buffers used in forward, differing between members"""

    def __init__(self):
        super().__init__()
        self.register_buffer("index", torch.randint(0, 6, (4,)))
        self.register_buffer("mask", torch.rand(6) > 0.5)
        self.register_buffer("mean", torch.randn(6))
        self.bn = nn.BatchNorm1d(6)

    def forward(self, x):
        x = self.bn(x - self.mean)
        return x[:, self.index], torch.where(self.mask, x, -x), x * self.bn.num_batches_tracked


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x):
        y = self.f(x)
        if y.sum() > 0:
            y = y * 2
        return y


class FixedView(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x):
        return self.f(x).view(3, -1)


class FixedView8(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x):
        y = self.f(x)
        return y.view(8, -1, 4).mean(0)


class FixedAdd(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 4))

    def forward(self, x):
        return x + self.w


class RandIn(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x):
        return self.f(x) + 0.1 * torch.randn(x.shape[0], 4)


class DropOn(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 40)

    def forward(self, x):
        return F.dropout(self.f(x), 0.5, training=True)


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.f(x) * self.calls


class NonZero(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x):
        y = self.f(x)
        return y[y > 0]


class Item(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x, k):
        return self.f(x)[:, : int(k[0])]
