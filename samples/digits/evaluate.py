"""Accuracy of each member and of the ensemble, from the ONNX file alone: no torch, no ensexport."""

import argparse

import numpy as np
import onnxruntime as ort
from data import load


def main(path: str) -> None:
    """Print the accuracies."""
    _, _, images, labels = load()
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"x": images})  # (N, B, 10)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = (exponentials / exponentials.sum(axis=-1, keepdims=True)).mean(axis=0)
    members = (logits.argmax(axis=-1) == labels).mean(axis=-1)
    ensemble = (probabilities.argmax(axis=-1) == labels).mean()
    print(f"{len(members)} members on {len(labels)} test images, one call of {path}")
    print(f"single member accuracy: mean {members.mean():.2%}, worst {members.min():.2%}, best {members.max():.2%}")
    print(f"ensemble accuracy:      {ensemble:.2%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", default="ensemble.onnx", help="the ONNX file")
    main(parser.parse_args().path)
