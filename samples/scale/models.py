"""A network of which people train a thousand: the next state of a system from its state and an action."""

from __future__ import annotations

from torch import nn


def dynamics(width: int = 296) -> nn.Module:
    """24-296-296-20, 101,252 parameters: 20 numbers of state and 4 of an action in, the change of the state out."""
    return nn.Sequential(
        nn.Linear(24, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 20)
    )  # fmt: skip
