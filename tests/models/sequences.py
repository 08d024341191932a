"""Recurrent layers, causal convolutions and scans."""

import torch
import torch.nn.functional as F
from torch import nn


class BiLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True, dropout=0.3)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        y, (h, c) = self.rnn(x)
        return self.head(y), h, c


class BiGRU(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(6, 5, num_layers=2, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        y, h = self.rnn(x)
        return self.head(y.mean(0)), h.transpose(0, 1)


class LSTMState(nn.Module):
    """initial state as an input"""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(6, 5, batch_first=True)
        self.out = nn.Linear(5, 6)

    def forward(self, x, h, c):
        y, (h, c) = self.rnn(x, (h.unsqueeze(0), c.unsqueeze(0)))
        return {"y": self.out(y), "h": h[0], "c": c[0]}


class LSTMCellLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(6, 5)
        self.gru = nn.GRUCell(5, 4)
        self.h0 = nn.Parameter(torch.randn(5))

    def forward(self, x):
        h = self.h0.expand(x.size(0), -1)
        c = torch.zeros_like(h)
        g = x.new_zeros(x.size(0), 4)
        outs = []
        for t in range(x.size(1)):
            h, c = self.cell(x[:, t], (h, c))
            g = self.gru(h, g)
            outs.append(g)
        return torch.stack(outs, 1)


class LSTMProj(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(6, 8, proj_size=4, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


class LearnedH0(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(6, 5, num_layers=2, batch_first=True)
        self.h0 = nn.Parameter(torch.randn(2, 1, 5))
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        h0 = self.h0.repeat(1, x.shape[0], 1)
        y = self.rnn(x, h0)[0]
        return self.head(y[:, -1])


class TextLSTM(nn.Module):
    def __init__(self, vocab=200):
        super().__init__()
        self.emb = nn.Embedding(vocab, 8, padding_idx=0)
        self.rnn = nn.LSTM(8, 6, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, tokens):
        mask = tokens.ne(0).unsqueeze(-1)
        y, _ = self.rnn(self.emb(tokens))
        y = (y * mask).sum(1) / mask.sum(1).clamp(min=1)
        return self.head(y)


class Speech(nn.Module):
    """conv + GRU + CTC head"""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.Hardtanh(0, 20, inplace=True),
            nn.Conv2d(4, 4, 3, stride=(2, 1), padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
        )
        self.rnn = nn.GRU(4 * 4, 8, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(16, 11)

    def forward(self, spec):  # B, 16, T
        x = self.conv(spec.unsqueeze(1))
        b, c, f, t = x.size()
        x = x.view(b, c * f, t).transpose(1, 2)
        x, _ = self.rnn(x)
        return F.log_softmax(self.fc(x), dim=-1)


class Chomp(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, x):
        return x[:, :, : -self.n].contiguous()


class TCN(nn.Module):
    def __init__(self):
        super().__init__()

        def b(i, o, d):
            return nn.Sequential(
                nn.utils.weight_norm(nn.Conv1d(i, o, 3, padding=2 * d, dilation=d)),
                Chomp(2 * d),
                nn.ReLU(),
                nn.Dropout(0.2),
            )

        self.net = nn.ModuleList([b(3, 4, 1), b(4, 4, 2)])
        self.skip = nn.Conv1d(3, 4, 1)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        y = x
        for n in self.net:
            y = n(y)
        return self.out(F.relu(y + self.skip(x))[:, :, -1])


class WaveNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Conv1d(1, 4, 2)
        self.f = nn.ModuleList([nn.Conv1d(4, 4, 2, dilation=2**i) for i in range(3)])
        self.g = nn.ModuleList([nn.Conv1d(4, 4, 2, dilation=2**i) for i in range(3)])
        self.s = nn.ModuleList([nn.Conv1d(4, 4, 1) for _ in range(3)])
        self.o = nn.Conv1d(4, 8, 1)

    def forward(self, x):
        x = self.front(F.pad(x, (1, 0)))
        skips = 0
        for i, (f, g, s) in enumerate(zip(self.f, self.g, self.s, strict=True)):
            h = F.pad(x, (2**i, 0))
            h = torch.tanh(f(h)) * torch.sigmoid(g(h))
            skips = skips + s(h)
            x = x + h
        return self.o(F.relu(skips))


class Mamba(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(4, 8)
        self.conv = nn.Conv1d(4, 4, 3, padding=2, groups=4)
        self.dt = nn.Linear(4, 4)
        self.A = nn.Parameter(torch.rand(4))
        self.B, self.C = nn.Linear(4, 2), nn.Linear(4, 2)
        self.D = nn.Parameter(torch.ones(4))
        self.out = nn.Linear(4, 4)

    def forward(self, x):
        size = x.shape[1]
        u, z = self.inp(x).chunk(2, dim=-1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., :size].transpose(1, 2))
        dt = F.softplus(self.dt(u))
        dA = -dt * self.A
        cum = torch.cumsum(dA, dim=1)
        dBu = torch.einsum("bld,bls->blds", dt * u, self.B(u))
        h = torch.cumsum(dBu * torch.exp(-cum)[..., None], dim=1) * torch.exp(cum)[..., None]
        y = torch.einsum("blds,bls->bld", h, self.C(u)) + u * self.D
        return self.out(y * F.silu(z))
