"""What the one file should reach, and what of it was measured."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import Run, find_row

NOTES = Path(__file__).with_name("notes.toml")
_OTHERS = ("mobilenetv3", "resnet50", "vit-tiny", "vit-base", "bert-base", "lstm", "unet3d")
_ON_GPU = ("resnet18-224", "resnet50", "vit-base", "bert-base")
NEVER_BELOW = 0.97
VMAP_MEAN = 1.25


@dataclass(frozen=True)
class Goal:
    """One figure to reach.

    Attributes:
        workload: Of which network.
        n_members: N.
        batch: B.
        alternative: The row it is about.
        bound: The figure.
        over: The row that it is compared with.
        quantity: `ratio`: the alternative's time over that of `over`; `kernels`: kernels a step of the artifact over
            those of one member, where less is better; `roofline`: the row's share of the roof.
        provider: Where.
        dtypes: Counted for the first of these that was measured.
    """

    workload: str
    n_members: int
    batch: int
    alternative: str
    bound: float
    over: str = "packed"
    quantity: str = "ratio"
    provider: str = "cpu"
    dtypes: tuple[str, ...] = ("float32",)

    @property
    def name(self) -> str:
        """How notes call it: `mlp N=10 B=1 strong-loop`."""
        return f"{self.workload} N={self.n_members} B={self.batch} {self.alternative}"


@dataclass(frozen=True)
class Verdict:
    """A goal and what was measured.

    Attributes:
        goal: Which.
        measured: The figure; None if it was not measured.
        interval: 95 % interval of a ratio.
        noise: The same ratio of the artifact to itself, in another process.
        is_met: None if it was not measured.
        reason: Why it was missed or not measured; empty if that is not known.
        dtype: What was measured.
    """

    goal: Goal
    measured: float | None
    interval: tuple[float, float] | None
    noise: float | None
    is_met: bool | None
    reason: str
    dtype: str = ""


def cpu_goals() -> Iterator[Goal]:
    """Two CPU cores: the loop as written and the strong loop."""
    rows: list[tuple[str, int, int, float, float]] = [
        ("mlp", 10, 1, 2.5, 1.3), ("mlp", 10, 8, 2.0, 1.2), ("mlp", 10, 64, 1.8, 1.1), ("mlp", 10, 256, 1.5, 1.0),
        ("lenet", 10, 1, 2.5, 1.3), ("lenet", 10, 8, 2.0, 1.2),
        ("resnet18-64", 5, 1, 3.0, 1.1), ("resnet18-224", 5, 1, 2.5, 1.0),
        *((name, 5, 1, 1.5, 1.0) for name in _OTHERS),
    ]  # fmt: skip
    for workload, n_members, batch, loop, strong in rows:
        yield Goal(workload, n_members, batch, "loop", loop)
        yield Goal(workload, n_members, batch, "strong-loop", strong)


def gpu_goals() -> Iterator[Goal]:
    """One H200: loops on device tensors, without a CUDA graph and with one on both sides."""
    rows: list[tuple[str, int, float, float]] = [
        ("mlp", 64, 7.0, 5.0), ("resnet18-224", 1, 3.0, 1.5), ("resnet50", 1, 3.0, 1.6), ("vit-base", 1, 3.0, 2.0),
        ("bert-base", 1, 3.5, 2.2), *((name, 32, NEVER_BELOW, NEVER_BELOW) for name in _ON_GPU),
    ]  # fmt: skip
    common: dict[str, Any] = {"provider": "cuda", "dtypes": ("tf32", "float32", "float16", "bfloat16")}
    for workload, batch, loop, with_graphs in rows:
        yield Goal(workload, 10, batch, "loop-bound", loop, "packed-bound", **common)
        yield Goal(workload, 10, batch, "loop-cuda-graph", with_graphs, "packed-cuda-graph", **common)
    for workload in ("mlp", *_ON_GPU):
        yield Goal(workload, 10, 1, "loop-bound", 1.15, quantity="kernels", **common)
    for workload in ("vit-base", "bert-base"):
        for alternative in ("packed-bound", "packed-cuda-graph"):
            yield Goal(
                workload, 10, 8, alternative, 0.45, quantity="roofline", provider="cuda", dtypes=("bfloat16",)
            )  # fmt: skip


def floors(runs: Sequence[Run]) -> Iterator[Goal]:
    """What must hold wherever it was measured: against the strong loop, and against the exported `torch.vmap`."""
    for run in runs:
        if run["provider"] == "cpu":
            for row in run["results"]:
                bound = {"strong-loop": NEVER_BELOW, "vmap-onnx": 1.0}.get(row["alternative"])
                if bound is not None:
                    dtypes = (run["dtype"],)
                    yield Goal(
                        run["workload"], row["n_members"], row["batch"], row["alternative"], bound, dtypes=dtypes
                    )


def judge(goal: Goal, runs: Sequence[Run], notes: Mapping[str, str]) -> Verdict:
    """Compare a goal with what was measured."""
    run = _run_of(goal, runs)
    if run is None:
        return Verdict(goal, None, None, None, None, notes.get(goal.name, ""))
    reason = notes.get(goal.name, notes.get(goal.workload, ""))
    row, base, noise = (find_row(run, goal.batch, name) for name in (goal.alternative, goal.over, "packed-again"))
    if row is None or base is None:
        return Verdict(goal, None, None, None, None, _why_not(goal, run) or notes.get(goal.name, ""), run["dtype"])
    interval = None
    if goal.quantity == "ratio":
        measured: float | None = row["ratio"] / base["ratio"]
        interval = (row["ratio_low"] / base["ratio_high"], row["ratio_high"] / base["ratio_low"])
        is_met = measured is not None and measured >= goal.bound
    elif goal.quantity == "kernels":
        counts = [None if one["nodes"] is None else one["nodes"]["total"] for one in (base, row)]
        measured = None if None in counts else counts[0] / (counts[1] / goal.n_members)
        is_met = measured is not None and measured <= goal.bound
    else:
        measured = row["roofline_share"]
        is_met = measured is not None and measured >= goal.bound
    if measured is None:
        return Verdict(goal, None, None, None, None, notes.get(goal.name, ""), run["dtype"])
    noise_ratio = None if noise is None or goal.quantity != "ratio" else noise["ratio"]
    return Verdict(goal, measured, interval, noise_ratio, is_met, "" if is_met else reason, run["dtype"])


def _run_of(goal: Goal, runs: Sequence[Run]) -> Run | None:
    for dtype in goal.dtypes:
        for run in runs:
            if (run["workload"], run["provider"], run["dtype"], run["n_members"]) == (
                goal.workload, goal.provider, dtype, goal.n_members,
            ):  # fmt: skip
                return run
    return None


def _why_not(goal: Goal, run: Run) -> str:
    for skipped in run["skipped"]:
        if skipped["batch"] == goal.batch:
            return f"one call would take about {skipped['estimate_s']:g} s"
    missing = run.get("left_out", {})
    return str(run.get("error") or missing.get(goal.alternative) or missing.get(goal.over) or "")


def mean_over_vmap(runs: Sequence[Run]) -> tuple[float, int] | None:
    """The geometric mean of all ratios to the exported `torch.vmap`, and how many they are."""
    ratios = [
        row["ratio"]
        for run in runs
        for row in run["results"]
        if run["provider"] == "cpu" and row["alternative"] == "vmap-onnx"
    ]
    return (math.exp(sum(map(math.log, ratios)) / len(ratios)), len(ratios)) if ratios else None


def read_notes() -> dict[str, str]:
    """Why goals were missed, as profiling has shown: name of a goal, or of a workload -> text."""
    notes: dict[str, str] = tomllib.loads(NOTES.read_text())
    return notes
