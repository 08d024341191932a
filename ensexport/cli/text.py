"""Reports as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ensexport.cli.members_text import inspection_lines, members_lines
from ensexport.dtypes import Conversion
from ensexport.members.wording import show_path
from ensexport.resources import size_text

MOST_MEMBERS = 40
"""Members that are listed where the list is not the answer."""


def validation_lines(validation: dict[str, Any]) -> Iterator[str]:
    """How the proof went."""
    checks = validation["checks"]
    if not checks:
        yield "proof: NONE, nothing was compared with the loop (--validate-members none)"
        return
    batches = sorted({check["batch"] for check in checks if check["batch"] is not None})
    where = f" at batch {', '.join(map(str, batches))}" if batches else ""
    chosen = validation["members"]
    whom = "the members" if chosen == "all" else f"{len(chosen)} of the members ({', '.join(map(str, chosen))})"
    yield f"proof: {len(checks)} comparisons with the loop over {whom}{where}, all within tolerance"
    for name, (low, high) in validation["integer_inputs"].items():
        yield f"  integers in {name}: {low} to {'the number of ids' if high is None else high}"
    for name, top1 in validation["top1"].items():
        yield f"  top-1 class of {name}: another than the loop's for {top1['differs']} of {top1['inputs']} inputs"
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
    if report["validation"] is None:
        yield from inspection_lines(report)
        yield "dry run: nothing was exported or written"
        return
    yield from members_lines(report, most=MOST_MEMBERS)
    yield from plan_lines(report["plan"])
    if report["dtypes"] is not None:
        yield f"dtypes: {Conversion(**report['dtypes']).describe()}"
    for fallback in report["plan"]["fallbacks"]:
        yield f"  {fallback['op']} ({fallback['source'] or 'no source line'}) went to {fallback['step']}"
    yield from validation_lines(report["validation"])
    yield from artifact_lines(report)


def swap_lines(report: dict[str, Any]) -> Iterator[str]:
    """The result of `swap`."""
    member = report["member"]
    yield f"member {member['index']} is {show_path(member['path'])} now, sha256 {member['sha256'][:12]}..."
    old = member["replaced"]
    yield f"  it was {old['name']}" + (f", sha256 {old['sha256'][:12]}..." if old["sha256"] else "")
    yield from validation_lines(report["validation"])
    yield from artifact_lines(report)


def artifact_lines(report: dict[str, Any]) -> Iterator[str]:
    """The files that were written, and how long it took."""
    yield "artifacts"
    for artifact in report["artifacts"]:
        yield f"  {show_path(artifact['path'])}  {size_text(artifact['size_bytes'])}  sha256 {artifact['sha256']}"
    times = ", ".join(f"{stage.replace('_', ' ')} {seconds:.1f}" for stage, seconds in report["timings_s"].items())
    yield f"seconds: {times}"
