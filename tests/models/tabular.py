"""Recommendation and tables: embeddings, bags, masks over features."""

import torch
import torch.nn.functional as F
from torch import nn


class DLRM(nn.Module):
    def __init__(self):
        super().__init__()
        self.bot = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU())
        self.emb = nn.ModuleList([nn.EmbeddingBag(n, 4, mode="sum") for n in (10, 300, 50)])
        self.top = nn.Sequential(nn.Linear(4 + 6, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())

    def forward(self, dense, sparse):  # sparse: B, 3
        x = self.bot(dense)
        e = [emb(sparse[:, i : i + 1]) for i, emb in enumerate(self.emb)]
        T = torch.stack([x, *e], 1)
        Z = torch.bmm(T, T.transpose(1, 2))
        li, lj = torch.tril_indices(4, 4, offset=-1)
        return self.top(torch.cat([x, Z[:, li, lj]], 1))


class BagOffsets(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(100, 6, mode="mean")
        self.fc = nn.Linear(6, 4)

    def forward(self, text, offsets):
        return self.fc(self.bag(text, offsets))


class TwoTower(nn.Module):
    def __init__(self):
        super().__init__()
        self.u, self.i = nn.Embedding(1000, 8), nn.Embedding(500, 8)
        self.uf, self.itf = nn.Linear(8, 4), nn.Linear(8 + 3, 4)
        self.ub, self.ib = nn.Embedding(1000, 1), nn.Embedding(500, 1)

    def forward(self, user, item, *, item_features):
        a = F.normalize(self.uf(self.u(user)), dim=-1)
        b = F.normalize(self.itf(torch.cat([self.i(item), item_features], -1)), dim=-1)
        return (a * b).sum(-1) + self.ub(user).squeeze(-1) + self.ib(item).squeeze(-1)


class WideDeep(nn.Module):
    def __init__(self, cards=(7, 30, 12)):
        super().__init__()
        offsets = torch.tensor([0, *cards[:-1]]).cumsum(0)
        self.register_buffer("offsets", offsets)
        self.wide = nn.Embedding(sum(cards), 1)
        self.deep = nn.Embedding(sum(cards), 4)
        self.bias = nn.Parameter(torch.zeros(1))
        self.mlp = nn.Sequential(nn.Linear(12 + 4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1))

    def forward(self, cat, num):
        cat = cat + self.offsets
        wide = self.wide(cat).sum(1) + self.bias
        deep = self.mlp(torch.cat([self.deep(cat).flatten(1), num], 1))
        return (wide + deep).squeeze(1)


class FTT(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(5, 8))
        self.cat = nn.ModuleList([nn.Embedding(c, 8) for c in (3, 11)])
        self.cls = nn.Parameter(torch.randn(8))
        self.blocks = nn.ModuleList(
            [nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True, dropout=0.1) for _ in range(2)]
        )
        self.head = nn.Sequential(nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x_num, x_cat):
        t = x_num[..., None] * self.w[None] + self.b[None]
        c = torch.stack([e(x_cat[:, i]) for i, e in enumerate(self.cat)], 1)
        x = torch.cat([self.cls[None, None].expand(len(x_num), 1, -1), t, c], 1)
        for b in self.blocks:
            x = b(x)
        return self.head(x[:, 0])


class TabNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(6)
        self.ft = nn.Linear(6, 16)
        self.ftbn = nn.BatchNorm1d(16)
        self.att = nn.ModuleList([nn.Linear(4, 6) for _ in range(3)])
        self.steps = nn.ModuleList([nn.Linear(6, 16) for _ in range(3)])
        self.head = nn.Linear(4, 2)

    def sparsemax(self, z):
        z = z - z.max(dim=-1, keepdim=True)[0]
        s, _ = torch.sort(z, dim=-1, descending=True)
        k = torch.arange(1, z.size(-1) + 1, device=z.device, dtype=z.dtype)
        cs = s.cumsum(-1)
        support = 1 + k * s > cs
        kz = support.sum(-1, keepdim=True)
        tau = (cs.gather(-1, kz - 1) - 1) / kz.to(z.dtype)
        return torch.clamp(z - tau, min=0)

    def forward(self, x):
        x = self.bn(x)
        prior = torch.ones(x.shape)
        out = 0
        h = F.glu(self.ftbn(self.ft(x)))[:, 4:]
        for a, s in zip(self.att, self.steps, strict=True):
            m = self.sparsemax(a(h) * prior)
            prior = prior * (1.3 - m)
            g = F.glu(s(m * x))
            out = out + F.relu(g[:, :4])
            h = g[:, 4:]
        return self.head(out), m
