"""Measure the standard set: pack each network's members, time the file against what it replaces, write the page.

    python run.py                                      # everything, on the CPU: hours
    python run.py --only mlp,lenet --quick             # a look, minutes
    python run.py --resume                             # what an interrupted run has left
    python run.py --provider cuda,tensorrt --dtype tf32,float16,bfloat16 --members 10

The results are written after every ensemble. A batch size whose call would take too long is left out and named.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
from options import Job, alternatives_of, batches_of, jobs, parse
from page import write_page
from results import Run, call_s, is_finished, read_runs, replaced, write_runs
from workloads import write_members

import ensexport
from ensexport.bench.files import make_feeds
from ensexport.bench.run import bench
from ensexport.runtime import read_metadata
from ensexport.runtime.onnx_runner import check_provider
from ensexport.timing.measure import time_files

HERE = Path(__file__).parent


def main() -> None:
    """Measure what the command line asks for."""
    options = parse()
    providers, refused = usable(options.provider.split(","))
    if options.check:
        return
    begin = time.perf_counter()
    output: Path = options.output / ("benchmarks.json" if providers[0] == "cpu" else "benchmarks-gpu.json")
    runs: list[Run] = read_runs(output)
    for job in jobs(options, providers):
        workload, provider, dtype, n_members = job
        wanted = batches_of(workload, provider, options)
        if options.resume and is_finished(runs, (workload.name, provider, dtype, n_members), wanted):
            continue
        if time.perf_counter() - begin > options.limit_s:
            say(f"{options.limit_s:g} s are over: `--resume` measures the rest")
            break
        runs = replaced(runs, {**measured(job, wanted, options, runs), "not_loaded": refused})
        write_runs(output, runs)
        write_page(options.output)


def measured(job: Job, batches: Sequence[int], options: argparse.Namespace, runs: Sequence[Run]) -> Run:
    """Pack and time one ensemble; a failure is kept as a text, so that the others can go on."""
    workload, provider, dtype, n_members = job
    run: dict[str, Any] = {
        "workload": workload.name,
        "provider": provider,
        "dtype": dtype,
        "n_members": n_members,
        "target": options.target if provider == "cpu" else provider,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "command": f"python samples/benchmarks/run.py {shlex.join(sys.argv[1:])}".strip(),
        "results": [],
        "skipped": [],
    }
    known = call_s(runs, workload.name, provider, dtype)
    say(f"{workload.name}, {n_members} members, {dtype}, {provider}")
    if known is not None and not list(affordable(batches, known * n_members, options.max_call_s, run)):
        return run  # not worth the packing
    run["skipped"].clear()
    try:
        with tempfile.TemporaryDirectory(prefix="ensexport-set-") as folder:
            measure(run, job, batches, options, Path(folder))
    except (ensexport.EnsexportError, RuntimeError, MemoryError, OSError) as error:
        run["error"] = f"{type(error).__name__}: {error}".replace(str(HERE.parents[1]), ".")
        say(f"  failed: {run['error']}")
    return run


def measure(
    run: dict[str, Any], job: Job, batches: Sequence[int], options: argparse.Namespace, folder: Path
) -> None:  # fmt: skip
    """Fill in what is found out about one ensemble."""
    workload, provider, dtype, n_members = job
    checkpoints = write_members(workload, folder, n_members, dtype)
    members = ensexport.load_members(checkpoints, workload.model, base_dir=HERE)
    artifact = folder / "ensemble.onnx"
    begin = time.perf_counter()
    proof: dict[str, Any] = {"batches": (2,), "seeds": (0,)} if workload.is_large else {}
    report = ensexport.export(
        members,
        artifact,
        inputs=[workload.input_spec(dtype)],
        per_member=workload.per_member,
        target=options.target if provider == "cpu" else provider,
        **proof,
    )
    run["pack"] = {
        "seconds": round(time.perf_counter() - begin, 1),
        "proof": "batch 2, one seed" if workload.is_large else "default",
        "max_error": report.validation.to_dict()["max_error"],
        "strategy": report.plan.strategy,
        "layers": sum(stage.layers for stage in report.plan.stages),
        "apart": sum(stage.layers for stage in report.plan.stages if stage.form == "apart"),
        "size_bytes": sum(path.stat().st_size for path in folder.glob("ensemble.onnx*")),
    }
    feed = make_feeds(read_metadata(artifact), members, (1,))[1]
    del members
    once_s = time_files({"packed": artifact}, [feed], provider=provider, blocks=3)[0][0].median_ms / 1e3
    chosen = list(affordable(batches, once_s, options.max_call_s, run))
    say(f"  packed in {run['pack']['seconds']:.0f} s, {once_s * 1e3:.3g} ms at batch 1; measuring batch {chosen}")
    if not chosen:
        return
    found = bench(
        artifact,
        checkpoints,
        model=workload.model,
        base_dir=HERE,
        batches=chosen,
        blocks=options.blocks,
        budget_s=options.budget_s,
        provider=provider,
        alternatives=alternatives_of(workload, provider, options),
        tf32=dtype == "tf32",
    ).to_dict()
    versions = {"ensexport": ensexport.__version__, "onnx": onnx.__version__}
    run |= {**found, "environment": {**found["environment"], **versions}}
    for row in run["results"]:
        if row["alternative"] in ("loop", "strong-loop", "loop-bound"):
            say(f"  batch {row['batch']}: {row['alternative']} takes {row['ratio']:.2f} times as long")


def affordable(batches: Sequence[int], once_s: float, limit_s: float, run: dict[str, Any]) -> Iterator[int]:
    """Batch sizes whose call is short enough; the others are noted. The work grows with the batch."""
    for batch in batches:
        if batch * once_s <= limit_s:
            yield batch
        else:
            run["skipped"].append({"batch": batch, "estimate_s": round(batch * once_s, 1)})


def usable(providers: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Those that load here, and why the others do not. The first must, or this ends with its exit code, 7."""
    found: list[str] = []
    refused: dict[str, str] = {}
    for provider in providers:
        try:
            check_provider(provider)
            found.append(provider)
        except ensexport.EnsexportError as error:
            say(f"{provider}: {error.message} {error.hint or ''}".strip())
            refused[provider] = error.message
            if provider == providers[0]:
                raise SystemExit(error.exit_code) from None
    return found, refused


def say(text: str) -> None:
    """Tell on stderr how far it is."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
