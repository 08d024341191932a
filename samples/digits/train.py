"""Train ten networks that differ in their seed only, and save one checkpoint each to ckpts/."""

from pathlib import Path

import torch
from data import load
from model import DigitsMLP
from torch import nn

MEMBERS, EPOCHS, BATCH = 10, 15, 64


def train(seed: int, images: torch.Tensor, labels: torch.Tensor) -> DigitsMLP:
    """Train one member from its own seed."""
    torch.manual_seed(seed)
    model = DigitsMLP().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    """Train and save all members."""
    images, labels, test_images, test_labels = load()
    folder = Path(__file__).parent / "ckpts"
    folder.mkdir(exist_ok=True)
    for seed in range(MEMBERS):
        model = train(seed, images, labels)
        torch.save(model.state_dict(), folder / f"seed_{seed}.pt")
        with torch.no_grad():
            accuracy = (model(test_images).argmax(1) == test_labels).float().mean()
        print(f"seed {seed}: test accuracy {accuracy:.2%}")


if __name__ == "__main__":
    main()
