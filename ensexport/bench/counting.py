"""What belongs to a measurement beside the time: kernels in one call, its work, and the least time that could take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ensexport.bench.alternatives import member_feeds
from ensexport.bench.contents import Contents
from ensexport.bench.files import Feeds, Files
from ensexport.bench.kernels import count_kernels
from ensexport.bench.names import BOUND_LOOPS, OWN_LAYOUT, SESSION_LOOPS
from ensexport.bench.report import Row
from ensexport.bench.roofline import count_work, floor_s, measure_peak
from ensexport.compare import Array
from ensexport.errors import EnsexportError
from ensexport.timing.exchange import cast_feed
from ensexport.timing.measure import Timing

_PER_MEMBER = (*SESSION_LOOPS, *BOUND_LOOPS)


@dataclass(frozen=True)
class Counts:
    """One ensemble's rows, and the facts behind them.

    Attributes:
        rows: The timings with their counts.
        work: What one call must do, an entry a batch size.
        peak: What the machine does at best; empty where no work could be counted.
    """

    rows: tuple[Row, ...]
    work: tuple[Mapping[str, Any], ...]
    peak: Mapping[str, Any]


def count(
    files: Files,
    feeds: Feeds,
    timings: Mapping[int | None, Sequence[Timing]],
    metadata: Mapping[str, Any],
    *,
    n_members: int,
    provider: str,
    tf32: bool = False,
) -> Counts:
    """Add kernels and roofline to timings.

    A count that fails is left empty: what was timed is right without it.

    Args:
        files: The alternatives' files.
        feeds: Inputs at each batch size.
        timings: What was measured on them.
        metadata: What the artifact says of itself.
        n_members: How many members it was measured with.
        provider: Where.
        tf32: Were float32 products computed in TF32?
    """
    rows: list[Row] = []
    works: list[Mapping[str, Any]] = []
    peaks: dict[str, Any] = {}
    # What must be done is read off the batched graph; a torch file has one in ONNX beside it.
    graph = next((p for p in (files.paths.get("packed"), files.paths.get("onnx")) if p and p.suffix == ".onnx"), None)
    for batch, feed in feeds.items():
        own = cast_feed(feed, Contents.of(metadata).casts)
        floor = None
        try:
            is_packed = graph is not None and graph == files.paths.get("packed")
            work = count_work(graph, own if is_packed else feed) if graph else None
            peak = measure_peak(provider, work.dtype, tf32=tf32) if work else None
        except EnsexportError:
            work = peak = None
        if work is not None and peak is not None:
            floor = floor_s(work, peak)
            works.append({"batch": batch, "n_members": n_members, **asdict(work), "floor_ms": floor * 1e3})
            peaks = {
                "peak_dtype": work.dtype,
                "peak_flops_per_s": peak.flops_per_s,
                "peak_bytes_per_s": peak.bytes_per_s,
            }
        seen: dict[Path, Mapping[str, int] | None] = {}
        job = {"n_members": n_members, "per_member": metadata["per_member"]}
        one = member_feeds(job, feed)[0]
        for timing in timings[batch]:
            given = own if timing.alternative in OWN_LAYOUT else feed
            nodes = _kernels(files, timing.alternative, batch, given, one, n_members, provider, seen)
            share = None if floor is None else floor / (timing.median_ms / 1e3)
            rows.append(Row(batch, n_members, timing, nodes, share))
    return Counts(tuple(rows), tuple(works), peaks)


def _kernels(
    files: Files,
    kind: str,
    batch: int | None,
    feed: Mapping[str, Array],
    one: Mapping[str, Array],
    n_members: int,
    provider: str,
    seen: dict[Path, Mapping[str, int] | None],
) -> dict[str, int] | None:
    """Kernels of one ensemble step, by op; a loop runs those of a member N times. None for what torch runs."""
    is_loop = kind in _PER_MEMBER
    path = Path(files.member_paths(1)[0]) if is_loop else files.path(kind, batch)
    if path is None or path.suffix != ".onnx":
        return None
    if path not in seen:
        try:
            seen[path] = count_kernels(path, provider, one if is_loop else feed)
        except EnsexportError:
            seen[path] = None
    found = seen[path]
    return None if found is None else {op: number * (n_members if is_loop else 1) for op, number in found.items()}
