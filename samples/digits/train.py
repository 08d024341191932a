"""Train ten networks that differ in their seed only, and save one checkpoint each to ckpts/."""

import argparse
from pathlib import Path

import torch
from data import load
from model import DigitsMLP
from torch import nn


def train(seed: int, epochs: int, images: torch.Tensor, labels: torch.Tensor) -> DigitsMLP:
    """Train one member from its own seed."""
    torch.manual_seed(seed)
    model = DigitsMLP().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


def main(members: int, epochs: int) -> None:
    """Train and save all members."""
    images, labels, test_images, test_labels = (torch.from_numpy(array) for array in load())
    folder = Path(__file__).parent / "ckpts"
    folder.mkdir(exist_ok=True)
    for seed in range(members):
        model = train(seed, epochs, images, labels)
        torch.save(model.state_dict(), folder / f"seed_{seed}.pt")
        with torch.no_grad():
            accuracy = (model(test_images).argmax(1) == test_labels).float().mean()
        print(f"seed {seed}: test accuracy {accuracy:.2%}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=10, help="networks to train")
    parser.add_argument("--epochs", type=int, default=15, help="passes over the training images")
    arguments = parser.parse_args()
    main(arguments.members, arguments.epochs)
