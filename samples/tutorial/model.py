"""The network of the PyTorch tutorial "Model ensembling"."""

import torch
import torch.nn.functional as F
from torch import nn


class SimpleMLP(nn.Module):
    """784 -> 128 -> 128 -> 10."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 128)
        self.fc2 = nn.Linear(128, 128)
        self.fc3 = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images `(B, 1, 28, 28)` to logits `(B, 10)`."""
        x = x.flatten(1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)
