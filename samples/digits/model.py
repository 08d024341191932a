"""The network of this sample: a small MLP for 8x8 images of handwritten digits."""

import torch
from torch import nn


class DigitsMLP(nn.Module):
    """64 -> 128 -> 128 -> 10; returns logits."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, width),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images `(B, 8, 8)` to logits `(B, 10)`."""
        return self.layers(x)
