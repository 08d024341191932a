"""Reinforcement learning, kinds of outputs."""

from collections import namedtuple
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.pi, self.v = nn.Linear(8, 4), nn.Linear(8, 1)

    def forward(self, obs):
        h = self.body(obs)
        return torch.distributions.Categorical(logits=self.pi(h)).logits, self.v(h).squeeze(-1)


class SAC(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.mu, self.ls = nn.Linear(8, 2), nn.Linear(8, 2)
        self.register_buffer("scale", torch.rand(2) + 1)

    def forward(self, obs, deterministic: bool = True):
        h = self.body(obs)
        mu, log_std = self.mu(h), self.ls(h).clamp(-20, 2)
        if deterministic:
            return torch.tanh(mu) * self.scale, log_std
        return torch.tanh(mu + log_std.exp() * torch.randn_like(mu)) * self.scale, log_std


class Dynamics(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 12))
        self.max_lv, self.min_lv = nn.Parameter(torch.ones(1, 6) * 0.5), nn.Parameter(-torch.ones(1, 6) * 10)
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("std", torch.rand(8) + 0.5)

    def forward(self, state, action):
        x = (torch.cat([state, action], -1) - self.mean) / self.std
        mean, logvar = self.net(x).chunk(2, -1)
        logvar = self.max_lv - F.softplus(self.max_lv - logvar)
        logvar = self.min_lv + F.softplus(logvar - self.min_lv)
        return namedtuple("Out", "mean logvar")(mean + state, logvar)


class DQN(nn.Module):
    def __init__(self):
        super().__init__()
        self.v, self.a = nn.Linear(6, 1), nn.Linear(6, 4)

    def forward(self, obs):
        a = self.a(obs)
        q = self.v(obs) + a - a.mean(1, keepdim=True)
        return {"q": q, "action": q.argmax(-1), "ok": (q > 0).any(-1)}


@dataclass
class Out:
    logits: torch.Tensor
    hidden: tuple | None = None
    nothing: torch.Tensor | None = None


class NT(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.g = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.relu(self.f(x))
        return Out(self.g(h), (h, None, [h * 2, {"deep": h.sum(-1)}])), None, NT(h.mean(), x)


class Weird(nn.Module):
    """0-d, per-batch, constant, input passed through, weight returned, the same tensor twice"""

    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 5)
        self.temperature = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        y = self.f(x) / self.temperature
        return {
            "y": y,
            "again": y,
            "x": x,
            "w": self.f.weight,
            "t": self.temperature,
            "const": torch.ones(3),
            "n": torch.zeros(x.shape[0], 2),
            "mean": y.mean(),
        }
