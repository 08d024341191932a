"""Reports as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ensexport.members.wording import show_path


def size_text(size_bytes: int) -> str:
    """`1.2 MB`, decimal units."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def members_lines(report: dict[str, Any]) -> Iterator[str]:
    """One line a member and one a skipped file."""
    yield f"members ({len(report['members'])})"
    for member in report["members"]:
        notes = [f"under '{member['container_key']}'"] if member["container_key"] else []
        notes += [f"prefix '{member['stripped_prefix']}' dropped"] if member["stripped_prefix"] else []
        yield f"  {member['index']:>3}  {show_path(member['path'])}  sha256 {member['sha256'][:12]}" + "".join(
            f"  ({note})" for note in notes
        )
    for skipped in report["skipped"]:
        yield f"    -  {show_path(skipped['path'])}  skipped: {skipped['reason']}"


def validation_lines(validation: dict[str, Any]) -> Iterator[str]:
    """How the proof went."""
    checks = validation["checks"]
    batches = sorted({check["batch"] for check in checks if check["batch"] is not None})
    where = f" at batch {', '.join(map(str, batches))}" if batches else ""
    yield f"proof: {len(checks)} comparisons with the loop over the members{where}, all within tolerance"
    for name, (low, high) in validation["integer_inputs"].items():
        yield f"  integers in {name}: {low} to {'the number of ids' if high is None else high}"
    yield f"  worst error {validation['max_error']:.2g} of the largest value, allowed {validation['tolerance']:.2g}"


def plan_lines(plan: dict[str, Any]) -> Iterator[str]:
    """What was batched, and what `tune` measured."""
    apart = sum(stage["layers"] for stage in plan["stages"] if stage["form"] == "apart")
    layers = sum(stage["layers"] for stage in plan["stages"])
    chosen = plan["strategy"]
    if layers:
        chosen += f", {layers - apart} of {layers} layers batched"
        chosen += f", {apart} once a member" if apart else ""
    yield f"plan for {plan['target']}: {chosen}"
    if plan["winner"] is None:
        return
    width = max(len(trial["candidate"]) for trial in plan["trials"])
    yield f"tuned: '{plan['winner']}' is kept"
    for trial in plan["trials"]:
        batch = "fixed shape" if trial["batch"] is None else f"batch {trial['batch']}"
        interval = f"{trial['ratio']:.2f} ({trial['ratio_low']:.2f} to {trial['ratio_high']:.2f})"
        yield f"  {batch:<10}  {trial['candidate']:<{width}} {trial['median_ms']:>10.3f} ms   {interval}"


def pack_lines(report: dict[str, Any]) -> Iterator[str]:
    """The result of `pack`."""
    yield from members_lines(report)
    if report["validation"] is None:
        yield "dry run: nothing was exported or written"
        return
    yield from plan_lines(report["plan"])
    for fallback in report["plan"]["fallbacks"]:
        yield f"  {fallback['op']} ({fallback['source'] or 'no source line'}) went to {fallback['step']}"
    yield from validation_lines(report["validation"])
    yield "artifacts"
    for artifact in report["artifacts"]:
        yield f"  {show_path(artifact['path'])}  {size_text(artifact['size_bytes'])}  sha256 {artifact['sha256']}"
    times = ", ".join(f"{stage.replace('_', ' ')} {seconds:.1f}" for stage, seconds in report["timings_s"].items())
    yield f"seconds: {times}"
