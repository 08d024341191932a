"""Write `docs/benchmarks.md` out of the measurements beside it.

    python page.py

The page says nothing that the JSON files and `notes.toml` do not; do not edit it by hand.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from drawing import draw_strong_loop
from goals import VMAP_MEAN, Goal, Verdict, cpu_goals, floors, gpu_goals, judge, mean_over_vmap, read_notes
from results import Run, read_runs
from workloads import WORKLOADS

DOCS = Path(__file__).parents[2] / "docs"
TITLES = {workload.name: workload.title for workload in WORKLOADS}
INTRODUCTION = """# The standard set

Written by `make bench` (`samples/benchmarks/run.py`) from [benchmarks.json](benchmarks.json); do not edit it.
[bench.md](bench.md) explains the rows and how they are measured. A ratio is how many times as long something takes as
the one file: 2 means that the one file is twice as fast. Behind it stands its 95 % interval; `noise` is the ratio of
the one file to itself in another process. N is the number of members, B the batch size. All members are random networks
with a shared input, unless it is said otherwise. Those of float16 and bfloat16 were converted before they were packed;
tf32 means float32 members, and products in TF32."""


def write_page(folder: Path = DOCS) -> Path:
    """Write the page of the measurements in a folder, and its drawing if matplotlib is there."""
    cpu, gpu = (read_runs(folder / name) for name in ("benchmarks.json", "benchmarks-gpu.json"))
    drawing = draw_strong_loop(cpu, folder / "benchmarks.svg")
    path = folder / "benchmarks.md"
    path.write_text(page(cpu, gpu, read_notes(), has_drawing=drawing))
    return path


def page(cpu: Sequence[Run], gpu: Sequence[Run], notes: Mapping[str, str], *, has_drawing: bool) -> str:
    """The page as text."""
    parts = [INTRODUCTION, *_machine(cpu)]
    if has_drawing:
        parts.append("![How many times as long the strong loop takes, by network and batch size](benchmarks.svg)")
    parts += ["## Goals on two CPU cores", *_goals([judge(goal, cpu, notes) for goal in cpu_goals()])]
    parts += ["### Wherever it was measured", *_floors(cpu, notes)]
    parts += _workloads(cpu)
    parts += ["## On a GPU", *_gpu(gpu, notes)]
    return "\n\n".join(parts) + "\n"


# -- sections --------------------------------------------------------------------------------------


def _machine(runs: Sequence[Run]) -> Iterator[str]:
    """What it was measured on; one paragraph, more only if the runs differ."""
    yield from dict.fromkeys(_facts(run) for run in runs if "environment" in run)
    commands = "\n".join(dict.fromkeys(f"    {run['command']}" for run in runs))
    if commands:
        yield f"Measured with\n\n{commands}"


def _facts(run: Run) -> str:
    facts = run["environment"]
    device = f", {facts['device']}" if "device" in facts else ""
    return (
        f"{run['date']}: {facts['processor']}, {facts['threads']} cores{device}, provider {facts['provider']}, "
        f"ONNX Runtime {facts['onnxruntime']}, torch {facts['torch']}, onnx {facts['onnx']}, "
        f"Python {facts['python']}, ensexport {facts['ensexport']}, packed for `{run['target']}`."
    )


def _goals(verdicts: Sequence[Verdict]) -> Iterator[str]:
    rows = [
        [
            TITLES[one.goal.workload], str(one.goal.n_members), str(one.goal.batch), _against(one.goal, one.dtype),
            _bound(one.goal), _measured(one), "-" if one.noise is None else f"{one.noise:.2f}", _met(one),
        ]
        for one in verdicts
    ]  # fmt: skip
    yield _table(["network", "N", "B", "against", "goal", "measured", "noise", "met"], rows, right={1, 2, 4, 6})
    known = [one for one in verdicts if one.is_met is not None]
    met = sum(one.is_met is True for one in known)
    yield f"{met} of {len(known)} measured goals are met; {len(verdicts) - len(known)} are not measured."


def _floors(runs: Sequence[Run], notes: Mapping[str, str]) -> Iterator[str]:
    verdicts = [judge(goal, runs, notes) for goal in floors(runs)]
    rows = []
    for alternative, bound in (("strong-loop", "0.97"), ("vmap-onnx", "1.00")):
        own = [one for one in verdicts if one.goal.alternative == alternative and one.measured is not None]
        if own:
            worst = min(own, key=lambda one: one.measured or math.inf)
            where = f"{worst.goal.workload}, N={worst.goal.n_members}, B={worst.goal.batch}"
            missed = sum(one.is_met is False for one in own)
            text = "yes" if not missed else f"no: {missed} of {len(own)} missed"
            rows.append([f"{alternative}, never below", bound, f"{worst.measured:.2f} ({where})", text])
    mean = mean_over_vmap(runs)
    if mean is not None:
        met = "yes" if mean[0] >= VMAP_MEAN else "no"
        rows.append([f"vmap-onnx, geometric mean of {mean[1]}", f"{VMAP_MEAN:.2f}", f"{mean[0]:.2f}", met])
    if not rows:
        yield "Nothing was measured yet."
        return
    yield _table(["against", "goal", "worst, or mean", "met"], rows, right={1})
    missed_ones = [one for one in verdicts if one.is_met is False]
    if missed_ones:
        yield "Missed there:"
        yield from list(_goals(missed_ones))[:1]


def _workloads(runs: Sequence[Run]) -> Iterator[str]:
    for name, title in TITLES.items():
        own = [run for run in runs if run["workload"] == name]
        if own:
            yield f"## {title}"
        for run in own:
            yield from _ensemble(run)


def _ensemble(run: Run) -> Iterator[str]:
    texts = []
    if "pack" in run:
        pack = run["pack"]
        proof = "" if pack["proof"] == "default" else f" (proven at {pack['proof']} here)"
        texts.append(f"packed in {pack['seconds']:.0f} s{proof}, {pack['size_bytes'] / 1e6:.3g} MB")
    if run.get("environment", {}).get("mode") == "isolated":
        texts.append(f"one alternative at a time: {run['environment']['mode_reason']}")
    texts += [f"B={one['batch']} left out, a call would take about {one['estimate_s']:g} s" for one in run["skipped"]]
    texts += [f"{kind} left out: {_short(reason)}" for kind, reason in run.get("left_out", {}).items()]
    texts += [f"failed: {_short(run['error'])}"] if "error" in run else []
    kind = "" if run["provider"] == "cpu" else f", {run['provider']}, {run['dtype']}"
    yield f"N = {run['n_members']}{kind}: " + "; ".join(texts) + "."
    if run["results"]:
        heads = ["B", "row", "times as long", "interval", "ms", "load s", "MB", "kernels", "of the roof"]
        yield _table(heads, [_cells(row) for row in run["results"]], right={0, 2, 4, 5, 6, 7, 8})


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        str(row["batch"]),
        row["alternative"],
        f"{row['ratio']:.2f}",
        f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}",
        f"{row['median_ms']:.3g}" if row["median_ms"] < 1000 else f"{row['median_ms']:.0f}",
        "-" if row["load_s"] is None else f"{row['load_s']:.2f}",
        "-" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}",
        "-" if row["nodes"] is None else str(row["nodes"]["total"]),
        "-" if row["roofline_share"] is None else f"{row['roofline_share']:.0%}",
    ]


def _gpu(runs: Sequence[Run], notes: Mapping[str, str]) -> Iterator[str]:
    if not runs:
        yield "Not yet run on a GPU. `make bench-gpu` measures these, on one H200, and fills them in:"
    yield from _machine(runs)
    refused = {name: why for run in runs for name, why in run["not_loaded"].items()}
    yield from (f"{name} did not load: {_short(why)}." for name, why in refused.items())
    yield from _goals([judge(goal, runs, notes) for goal in gpu_goals()])
    if runs:
        yield from (part.replace("## ", "### ") for part in _workloads(runs))


# -- words -----------------------------------------------------------------------------------------


def _against(goal: Goal, dtype: str) -> str:
    kind = "" if goal.provider == "cpu" else f", {dtype or goal.dtypes[0]}"
    if goal.quantity == "kernels":
        return f"kernels, as a multiple of one member's{kind}"
    if goal.quantity == "roofline":
        return f"share of the roof, {goal.alternative}{kind}"
    return f"{goal.alternative}{'' if goal.over == 'packed' else f' over {goal.over}'}{kind}"


def _bound(goal: Goal) -> str:
    return f"at most {goal.bound:g}" if goal.quantity == "kernels" else f"{goal.bound:g}"


def _measured(one: Verdict) -> str:
    if one.measured is None:
        return "-"
    return f"{one.measured:.2f}" + (
        "" if one.interval is None else f" ({one.interval[0]:.2f} to {one.interval[1]:.2f})"
    )


def _met(one: Verdict) -> str:
    if one.is_met:
        return "yes"
    word = "not measured" if one.is_met is None else "no"
    unknown = "" if one.is_met is None else ": the reason is not known yet"
    return f"{word}: {_short(one.reason)}" if one.reason else word + unknown


def _short(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:400].rstrip(".")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: set[int]) -> str:
    rule = ["---:" if place in right else "---" for place in range(len(heads))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows))


if __name__ == "__main__":
    print(write_page(*map(Path, sys.argv[1:2])))
