"""Experts, graphs, sets and points."""

import torch
import torch.nn.functional as F
from torch import nn


class KAN(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Parameter(torch.randn(4, 5))
        self.spline = nn.Parameter(torch.randn(4, 5, 6))
        self.register_buffer("grid", torch.linspace(-1.5, 1.5, 10).expand(5, 10).contiguous())

    def b_splines(self, x):
        x = x.unsqueeze(-1)
        g = self.grid
        bases = ((x >= g[:, :-1]) & (x < g[:, 1:])).to(x.dtype)
        for k in range(1, 4):
            bases = ((x - g[:, : -(k + 1)]) / (g[:, k:-1] - g[:, : -(k + 1)]) * bases[:, :, :-1]) + (
                (g[:, k + 1 :] - x) / (g[:, k + 1 :] - g[:, 1:(-k)]) * bases[:, :, 1:]
            )
        return bases.contiguous()

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, 5)
        y = F.linear(F.silu(x), self.base) + F.linear(self.b_splines(x).view(x.size(0), -1), self.spline.view(4, -1))
        return y.reshape(*shape[:-1], 4)


class MoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(6, 4)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)) for _ in range(4)])

    def forward(self, x):
        g = self.gate(x)
        top, idx = g.topk(2, dim=-1)
        w = torch.full_like(g, float("-inf")).scatter(-1, idx, top).softmax(-1)
        y = torch.stack([e(x) for e in self.experts], dim=-1)
        return (y * w.unsqueeze(-2)).sum(-1), idx


class MoEParam(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(6, 4)
        self.w1, self.w2 = nn.Parameter(torch.randn(4, 6, 8)), nn.Parameter(torch.randn(4, 8, 3))

    def forward(self, x):
        p = torch.softmax(self.gate(x), -1)
        h = F.gelu(torch.einsum("bi,eih->beh", x, self.w1))
        return torch.einsum("beh,eho,be->bo", h, self.w2, p)


class GCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, adj):
        adj = adj + torch.eye(adj.size(-1), device=adj.device)
        d = adj.sum(-1).clamp(min=1).pow(-0.5)
        adj = d.unsqueeze(-1) * adj * d.unsqueeze(-2)
        x = F.relu(torch.matmul(adj, self.a(x)))
        return torch.matmul(adj, self.b(x)).mean(1)


class GAT(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Linear(4, 6, bias=False)
        self.a1, self.a2 = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))

    def forward(self, x, adj):
        h = self.w(x)
        e = F.leaky_relu((h @ self.a1)[:, :, None] + (h @ self.a2)[:, None, :], 0.2)
        e = torch.where(adj > 0, e, torch.tensor(-9e15, dtype=e.dtype))
        return F.elu(torch.softmax(e, -1) @ h)


class DeepSets(nn.Module):
    def __init__(self):
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(3, 8), nn.ELU(inplace=True), nn.Linear(8, 8))
        self.rho = nn.Sequential(nn.Linear(8, 8), nn.ELU(), nn.Linear(8, 2))

    def forward(self, x, mask):
        return self.rho((self.phi(x) * mask.unsqueeze(-1)).sum(1))


class PointNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.t = nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU())
        self.tf = nn.Linear(8, 9)
        self.c1 = nn.Conv1d(3, 8, 1)
        self.bn1 = nn.BatchNorm1d(8)
        self.c2 = nn.Conv1d(16, 6, 1)

    def forward(self, x):
        n = x.size(2)
        t = torch.max(self.t(x), 2, keepdim=True)[0].view(-1, 8)
        iden = torch.eye(3).flatten().view(1, 9).repeat(x.size(0), 1)
        trans = (self.tf(t) + iden).view(-1, 3, 3)
        x = torch.bmm(x.transpose(2, 1), trans).transpose(2, 1)
        p = F.relu(self.bn1(self.c1(x)))
        g = torch.max(p, 2, keepdim=True)[0].view(-1, 8, 1).repeat(1, 1, n)
        return F.log_softmax(self.c2(torch.cat([g, p], 1)).transpose(2, 1), -1)
