"""Tiny models, one a subject: name -> how to build one with random weights, and its inputs."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

Pair = namedtuple("Pair", ["mean", "spread"])


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None
    parts: list = field(default_factory=list)
    derived: torch.Tensor = field(init=False, default=None)


class Mlp(nn.Module):
    def __init__(self, width=5, scale=1.0):
        super().__init__()
        self.fc1 = nn.Linear(4, width)
        self.fc2 = nn.Linear(width, 3)
        self.scale = scale

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x))) * self.scale


class Convnet(nn.Module):
    """Dropout and BatchNorm, whose statistics differ from member to member."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        self.norm.num_batches_tracked += 3

    def forward(self, x):
        return self.drop(F.relu(self.norm(self.conv(x)))).mean((2, 3))


class Tied(nn.Module):
    """Embedding and output layer share one Parameter, which the root holds under a third name."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.emb.weight
        self.table = self.emb.weight

    def forward(self, x):
        return self.head(self.emb(x)) + self.table.sum()


class Buffers(nn.Module):
    """A saved and an unsaved buffer, a scalar parameter, an integer one, and an empty one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.randn(4))
        self.register_buffer("unsaved", torch.randn(4), persistent=False)
        self.register_buffer("nothing", None)
        self.temperature = nn.Parameter(torch.rand(()))
        self.index = nn.Parameter(torch.randint(0, 4, (4,)), requires_grad=False)

    def forward(self, x):
        return (x[:, self.index] + self.shift - self.unsaved) * self.temperature


class Awkward(nn.Module):
    """Names that an ensemble has too."""

    def __init__(self):
        super().__init__()
        self.labels = nn.Linear(4, 4)
        self.n_members = nn.Linear(4, 4)
        self.base = nn.Linear(4, 4)
        self._base = nn.Linear(4, 4)
        self.build = nn.Linear(4, 4)
        self.register_buffer("in_dims", torch.randn(4))
        self.in_dim = nn.Parameter(torch.randn(4))

    def forward(self, x):
        x = self.build(self._base(self.base(self.n_members(self.labels(x)))))
        return x + self.in_dims * self.in_dim


class Caching(nn.Module):
    """Notes what it computed last."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.last = None

    def forward(self, x):
        self.last = self.fc(x)
        return self.last * 2


class Recurrent(nn.Module):
    """Something torch.vmap has no rule for."""

    def __init__(self, kind=nn.GRU):
        super().__init__()
        self.rnn = kind(4, 3, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


class Stateless(nn.Module):
    def forward(self, x):
        return x.softmax(-1)


class Dimensionless(nn.Module):
    """Returns a 0-d tensor."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x).mean()


class Structured(nn.Module):
    """Returns whatever structure it is told to."""

    def __init__(self, shape):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.shape = shape

    def forward(self, x):
        y = self.fc(x)
        return STRUCTURES[self.shape](y)


STRUCTURES = {
    "tuple": lambda y: (y, y + 1),
    "list": lambda y: [y, y.sum()],
    "dict": lambda y: {"a": y, "b": {"c": y * 2}},
    "ordered dict": lambda y: OrderedDict([("b", y), (1, y * 2)]),
    "named tuple": lambda y: Pair(y, y.exp()),
    "dataclass": lambda y: Answer(y, parts=[y + 1]),
    "None among them": lambda y: (None, y, [None]),
    "plain values": lambda y: {"y": y, "n": 3, "name": "net", "flag": True},
    "torch.max": lambda y: y.max(1),
    "one tensor twice": lambda y: (y, y),
    "0-d": lambda y: y.mean(),
}


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)
        self.b = nn.Linear(2, 3)

    def forward(self, x, context, scale=None):
        y = self.a(x) + self.b(context)
        return y if scale is None else y * scale


def _image():
    return torch.randn(6, 1, 5, 5)


def _rows():
    return torch.randn(6, 4)


MODELS = {
    "mlp": (Mlp, _rows),
    "linear": (lambda: nn.Linear(4, 2), _rows),
    "sequential": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)), _rows),
    "batch norm": (Convnet, _image),
    "tied": (Tied, lambda: torch.randint(0, 7, (6, 5))),
    "buffers": (Buffers, _rows),
    "awkward names": (Awkward, _rows),
    "caching": (Caching, _rows),
    "stateless": (Stateless, _rows),
    "0-d output": (Dimensionless, _rows),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)), _rows),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), lambda: torch.randn(6, 3, 4)),
    "old weight norm": (lambda: weight_norm(nn.Linear(4, 3)), _rows),
    "old spectral norm": (lambda: spectral_norm(nn.Linear(4, 3)), _rows),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), _rows),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 3)), _rows),
    "pruned": (lambda: prune.random_unstructured(nn.Linear(4, 3), "weight", 0.5), _rows),
    "gru": (Recurrent, lambda: torch.randn(6, 3, 4)),
    "lstm": (lambda: Recurrent(nn.LSTM), lambda: torch.randn(6, 3, 4)),
}


def members_of(name, n_members):
    """N differently initialised modules, still in train mode, and one batch."""
    torch.manual_seed(sum(map(ord, name)) + n_members)
    make, example = MODELS[name]
    return [make() for _ in range(n_members)], example()


def loop(modules, *args, **kwargs):
    """The members one by one, in eval mode, stacked."""
    with torch.no_grad():
        return torch.stack([module.eval()(*args, **kwargs) for module in modules])
