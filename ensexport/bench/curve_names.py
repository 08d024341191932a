"""What a members curve measures, in words. Light, like `names`."""

from __future__ import annotations

CURVE_ALTERNATIVES = ("loop",)
TITLES = {
    "agreement": "agreement",
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "deviation": "deviation",
    "rmse": "RMSE",
}
EXPLAINED = {
    "agreement": "share of the rows in which the subset's class is that of all members",
    "accuracy": "share of the rows in which it is the label",
    "nll": "mean of -log of the label's probability, in nats",
    "ece": "expected calibration error of the largest probability, 15 bins",
    "deviation": "RMS difference to the mean of all members, over the standard deviation of that mean",
    "rmse": "RMS difference to the labels",
}
