"""How uncertain the ensemble is about digits and about noise, from the ONNX file alone: no torch, no ensexport."""

import argparse

import numpy as np
import onnxruntime as ort
from data import load
from sklearn.metrics import roc_auc_score

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
QUANTILES = (0.05, 0.5, 0.95)


def mutual_information(session: ort.InferenceSession, images: np.ndarray) -> np.ndarray:
    """Return how much the members disagree on each image, `(B,)`, in nats."""
    (x,) = session.get_inputs()
    (values,) = session.run(["output.mutual_information"], {x.name: images.astype(DTYPES[x.type])})
    return values.astype(np.float64)


def plot(path: str, known: np.ndarray, unknown: np.ndarray, title: str) -> None:
    """Draw both as histograms; the same numbers always give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"axes.spines.right": False, "axes.spines.top": False, "svg.hashsalt": "digits"})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    bins = np.linspace(0, max(known.max(), unknown.max()), 31)
    labels = [f"{len(known)} test images of digits", f"{len(unknown)} images of uniform noise"]
    axes.hist([known, unknown], bins, color=["#0072B2", "#D55E00"], label=labels)
    axes.set(xlabel="mutual information, in nats", ylabel="images", yscale="log", title=title)
    axes.legend(frameon=False)
    figure.savefig(path, metadata=dict.fromkeys(("Creator", "Date")) if path.endswith(".svg") else None)


def main(path: str, picture: str | None) -> None:
    """Print, and draw where asked, the mutual information of digits and of noise."""
    _, _, images, _ = load()
    noise = np.random.default_rng(0).random(images.shape, dtype=np.float32)  # [0, 1], as the images are
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    known, unknown = (mutual_information(session, batch) for batch in (images, noise))
    print(f"mutual information in nats, one call of {path} each")
    for name, values in (("digits", known), ("noise", unknown)):
        low, middle, high = np.quantile(values, QUANTILES)
        print(
            f"{len(values)} images of {name + ':':<8} mean {values.mean():.3f}, median {middle:.3f}, "
            f"90% between {low:.3f} and {high:.3f}"
        )
    area = roc_auc_score(np.repeat([0, 1], len(known)), np.concatenate([known, unknown]))
    print(f"noise told from digits by it: AUROC {area:.3f}")
    if picture is not None:
        plot(picture, known, unknown, f"noise told from digits: AUROC {area:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", default="uncertainty.onnx", help="a file packed with mutual_information")
    parser.add_argument("--plot", metavar="FILE", help="draw both as histograms: .svg or .png; needs matplotlib")
    arguments = parser.parse_args()
    main(arguments.path, arguments.plot)
