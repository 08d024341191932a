"""Real handwritten digits: 1,797 images of 8x8 pixels that ship inside scikit-learn.

Run by itself, it saves the test images `x` and their `labels` as one .npz.
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return train images `(B, 8, 8)` in [0, 1], train labels `(B,)`, test images, test labels."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    train, test = train_test_split(np.arange(len(images)), test_size=0.3, random_state=0, stratify=digits.target)
    return images[train], digits.target[train], images[test], digits.target[test]


def main(path: str) -> None:
    """Save the test images and labels."""
    _, _, images, labels = load()
    np.savez(path, x=images, labels=labels)
    print(f"{len(labels)} test images and labels in {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", default="test.npz", help="the file to write")
    main(parser.parse_args().path)
