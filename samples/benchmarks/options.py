"""The command line of `run.py`, and the list of what it asks for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from goals import gpu_goals
from workloads import DTYPES, WORKLOADS, Workload

from ensexport.bench.names import BOUND, DEFAULT_ALTERNATIVES

DOCS = Path(__file__).parents[2] / "docs"
NAMES = [workload.name for workload in WORKLOADS]
SESSIONS = ("loop", "strong-loop", "strong-loop-1-thread", "threads", "unrolled", "vmap-onnx")
ON_DEVICE = (*BOUND, "loop", "strong-loop", "unrolled", "vmap-onnx")
Job = tuple[Workload, str, str, int]  # workload, provider, dtype, number of members


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure the standard set and write docs/benchmarks.md.")
    parser.add_argument("--only", help=f"some of {','.join(NAMES)}")
    parser.add_argument("--members", help="numbers of members, default 5,10")
    parser.add_argument("--batch", help="batch sizes; default: the workload's own")
    parser.add_argument("--provider", default="cpu", help="cpu, cuda, or cuda,tensorrt: what does not load is left out")
    parser.add_argument("--dtype", default="float32", help=f"some of {','.join(DTYPES)}")
    parser.add_argument("--target", choices=("cpu", "portable"), default="cpu", help="what CPU files are packed for")
    parser.add_argument("--alternatives", help="rows to compare with; default: those that matter")
    parser.add_argument("--blocks", type=int, help="rounds, default 30")
    parser.add_argument("--budget-s", type=float, help="seconds of each row, default 3; at least 7 rounds are made")
    parser.add_argument("--max-call-s", type=float, default=4.0, help="leave out what would take longer, default 4")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="start nothing after so many seconds")
    parser.add_argument("--quick", action="store_true", help="by default 5 members, batch 1, 7 rounds; fewer rows")
    parser.add_argument("--resume", action="store_true", help="skip what the output holds already")
    parser.add_argument("--check", action="store_true", help="only find out whether the provider is there")
    parser.add_argument("-o", "--output", type=Path, default=DOCS, help="folder of the page and its JSON")
    options = parser.parse_args()
    options.members = options.members or ("5" if options.quick else "5,10")
    options.batch = options.batch or ("1" if options.quick else None)
    options.blocks = options.blocks or (7 if options.quick else 30)
    options.budget_s = options.budget_s or (0.5 if options.quick else 3.0)
    for option, known in (("only", NAMES), ("dtype", list(DTYPES))):
        unknown = set((getattr(options, option) or known[0]).split(",")) - set(known)
        if unknown:
            parser.error(f"unknown --{option} {', '.join(sorted(unknown))}: expected some of {', '.join(known)}")
    return options


def jobs(options: argparse.Namespace, providers: Sequence[str]) -> list[Job]:
    """What to measure, in order: the large networks' larger ensembles last, on a GPU what has goals first."""
    only = options.only.split(",") if options.only else NAMES
    found = [
        (workload, provider, dtype, n_members)
        for workload in WORKLOADS
        if workload.name in only
        for provider in providers
        for dtype in options.dtype.split(",")[: 1 if provider == "tensorrt" else None]
        for n_members in map(int, options.members.split(","))
    ]
    if providers[0] == "cpu":
        return sorted(found, key=lambda job: job[0].is_large and job[3] > 5)
    dtypes, with_goals = options.dtype.split(","), {goal.workload for goal in gpu_goals()}
    return sorted(found, key=lambda job: (job[1] != "cuda", dtypes.index(job[2]), job[0].name not in with_goals))


def batches_of(workload: Workload, provider: str, options: argparse.Namespace) -> list[int]:
    """The batch sizes to measure."""
    if options.batch:
        return [int(batch) for batch in options.batch.split(",")]
    return list(workload.batches if provider == "cpu" else workload.gpu_batches)


def alternatives_of(workload: Workload, provider: str, options: argparse.Namespace) -> Sequence[str]:
    """What to compare with."""
    if options.alternatives:
        return tuple(options.alternatives.split(","))
    if provider != "cpu":
        return ON_DEVICE
    return (*DEFAULT_ALTERNATIVES, "torchscript") if workload.is_small and not options.quick else SESSIONS
