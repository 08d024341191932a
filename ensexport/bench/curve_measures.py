"""How good one subset of the members is: agreement with all of them, and measures against labels from torchmetrics.

Class probabilities are the mean of the members' softmax, as `--emit probs` has them; values are the members' mean. All
in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ensexport.errors import OutputError

N_BINS = 15
CLASS_MEASURES = ("agreement", "accuracy", "nll", "ece")
VALUE_MEASURES = ("deviation", "rmse")
MEASURES = (*CLASS_MEASURES, *VALUE_MEASURES)
"""All names; those that do not apply are null in a report."""


class Measures(Protocol):
    """What is kept of one subset while rows come in."""

    def update(self, subset: Tensor, everyone: Tensor, labels: Tensor | None) -> None:
        """Take in some rows: what the subset says, what all members say, what is true."""

    def result(self) -> dict[str, float]:
        """Measure -> its value over all rows."""


class ClassMeasures:
    """For class scores: log-probabilities `(rows, C)` and labels `(rows,)`.

    Args:
        n_classes: C.
        has_labels: Are there labels?

    Raises:
        OutputError: There are labels, and torchmetrics is not there.
    """

    def __init__(self, n_classes: int, *, has_labels: bool) -> None:
        self._same = self._rows = 0
        self._loss = 0.0
        self._metrics: dict[str, Any] = {}
        if has_labels:
            metrics = load_metrics().classification
            self._metrics = {
                "accuracy": metrics.MulticlassAccuracy(n_classes, average="micro", validate_args=False),
                "ece": metrics.MulticlassCalibrationError(n_classes, n_bins=N_BINS, norm="l1", validate_args=False),
            }

    def update(self, subset: Tensor, everyone: Tensor, labels: Tensor | None) -> None:
        """Take in some rows."""
        self._rows += len(subset)
        self._same += int((subset.argmax(1) == everyone.argmax(1)).sum())
        if labels is not None:
            # torchmetrics takes what rounding puts above 1 for logits, and applies a softmax.
            probabilities = subset.exp().clamp(0, 1)
            for metric in self._metrics.values():
                metric.update(probabilities, labels)
            self._loss += float(nn.functional.nll_loss(subset, labels, reduction="sum"))

    def result(self) -> dict[str, float]:
        """`agreement`, and with labels `accuracy`, `nll` (in nats) and `ece`."""
        found = {"agreement": self._same / self._rows}
        if self._metrics:
            found |= {name: float(metric.compute()) for name, metric in self._metrics.items()}
            found["nll"] = self._loss / self._rows
        return found


class ValueMeasures:
    """For values of any shape.

    Args:
        has_labels: Are there labels?

    Raises:
        OutputError: There are labels, and torchmetrics is not there.
    """

    def __init__(self, *, has_labels: bool) -> None:
        self._origin = 0.0
        self._n = 0
        self._error = self._sum = self._squares = 0.0
        self._rmse: Any = None
        if has_labels:
            self._rmse = load_metrics().regression.MeanSquaredError(squared=False).set_dtype(torch.float64)

    def update(self, subset: Tensor, everyone: Tensor, labels: Tensor | None) -> None:
        """Take in some rows."""
        if not self._n:
            self._origin = float(everyone.mean())  # sums of squares lose nothing near the mean
        shifted = everyone - self._origin
        self._n += everyone.numel()
        self._sum += float(shifted.sum())
        self._squares += float((shifted**2).sum())
        self._error += float(((subset - everyone) ** 2).sum())
        if labels is not None:
            self._rmse.update(subset.flatten(), labels.flatten())

    def result(self) -> dict[str, float]:
        """`deviation`, NaN where all values are the same, and with labels `rmse`."""
        variance = self._squares / self._n - (self._sum / self._n) ** 2
        found = {"deviation": math.sqrt(self._error / self._n / variance) if variance > 0 else math.nan}
        if self._error == 0:
            found["deviation"] = 0.0
        if self._rmse is not None:
            found["rmse"] = float(self._rmse.compute())
        return found


def load_metrics() -> Any:
    """The module `torchmetrics`.

    Raises:
        OutputError: It is not installed, or something that it imports fails.
    """
    try:
        import torchmetrics
        import torchmetrics.classification
        import torchmetrics.regression
    except ImportError as error:
        raise OutputError(
            "cannot measure against labels: torchmetrics is not installed.",
            hint='Run: pip install "ensexport[metrics]"',
        ) from error
    except RuntimeError as error:  # it imports torchvision where that is installed
        raise OutputError(
            f"cannot measure against labels: torchmetrics cannot be imported: {str(error).splitlines()[0][:200]}.",
            hint="Is torchvision built for this torch? Install the matching one, or none.",
        ) from error
    return torchmetrics


def means_of(measured: list[dict[str, float]]) -> Mapping[str, Mapping[str, float]]:
    """Mean, smallest and largest of each measure over subsets."""
    return {
        name: {
            "mean": math.fsum(found[name] for found in measured) / len(measured),
            "min": min(found[name] for found in measured),
            "max": max(found[name] for found in measured),
        }
        for name in measured[0]
    }
