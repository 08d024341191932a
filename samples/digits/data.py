"""Real handwritten digits: 1,797 images of 8x8 pixels that ship inside scikit-learn."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def load() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return train images `(B, 8, 8)` in [0, 1], train labels `(B,)`, test images, test labels."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16.0, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=0.3, random_state=0, stratify=labels)
    return images[train], labels[train], images[test], labels[test]
