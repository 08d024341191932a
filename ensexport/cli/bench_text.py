"""The report of `bench` as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ensexport.bench.names import DESCRIPTIONS
from ensexport.members.wording import show_path


def bench_lines(report: dict[str, Any]) -> Iterator[str]:
    """One table a batch size and number of members, what its rows are, and how it was measured."""
    environment = report["environment"]
    width = max(len(row["alternative"]) for row in report["results"])
    device = f", {environment['device']}" if "device" in environment else ""
    yield (
        f"{show_path(report['artifact'])} on {environment['processor']}, {environment['threads']} threads{device}, "
        f"provider {environment['provider']}, "
        f"ONNX Runtime {environment['onnxruntime']}, torch {environment['torch']}"
    )
    for batch, n_members in dict.fromkeys((row["batch"], row["n_members"]) for row in report["results"]):
        rows = [row for row in report["results"] if (row["batch"], row["n_members"]) == (batch, n_members)]
        title = f"{'fixed shape' if batch is None else f'batch {batch}'}, N = {n_members}"
        yield (
            f"\n{title:<{width}}    ms a call   times as long as the artifact   nodes  of the roof  memory MB  load s"
        )
        for row in rows:
            yield f"  {row['alternative']:<{width}}{_numbers(row)}"
        yield from _floor(report, batch, n_members)
    yield ""
    for kind in dict.fromkeys(row["alternative"] for row in report["results"]):
        yield f"{kind}: {DESCRIPTIONS[kind]}"
    for kind, reason in report["left_out"].items():
        yield f"{kind}: left out, {reason}"
    yield f"how: {environment['method']}; outputs compared first"
    yield f"mode: {environment['mode']}, {environment['mode_reason']}"
    for plot in report["plots"]:
        yield f"drawn: {show_path(plot)}"


def _numbers(row: dict[str, Any]) -> str:
    interval = f"{row['ratio']:>8.2f}   ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
    nodes = "-" if row["nodes"] is None else str(row["nodes"]["total"])
    share = "-" if row["roofline_share"] is None else f"{row['roofline_share']:.1%}"
    memory = "-" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"
    load = "-" if row["load_s"] is None else f"{row['load_s']:.3f}"
    return f"{row['median_ms']:>11.3f}   {interval:<29}{nodes:>8}{share:>13}{memory:>11}{load:>8}"


def _floor(report: dict[str, Any], batch: int | None, n_members: int) -> Iterator[str]:
    """The roof that shares refer to."""
    environment = report["environment"]
    for work in report["work"]:
        if (work["batch"], work["n_members"]) == (batch, n_members):
            data = work["weight_bytes"] + work["input_bytes"] + work["output_bytes"]
            yield (
                f"  the roof: {work['floor_ms']:.3g} ms for {work['flops'] / 1e6:.3g} MFLOP in {work['dtype']} and "
                f"{data / 1e6:.3g} MB; measured peaks {environment['peak_flops_per_s'] / 1e9:.3g} GFLOP/s, "
                f"{environment['peak_bytes_per_s'] / 1e9:.3g} GB/s from memory"
            )
