"""The result of `extract` as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ensexport.members.wording import show_path
from ensexport.resources import size_text


def extract_lines(report: dict[str, Any]) -> Iterator[str]:
    """The member, how it was proven, and the files."""
    member, validation, state = report["member"], report["validation"], report["state"]
    digest = member["sha256"] or member["weights_sha256"]
    yield f"member {member['index']}  {show_path(member['name'])}  sha256 {digest[:12]}"
    if validation is not None:
        checks = validation["checks"]
        batches = sorted({check["batch"] for check in checks if check["batch"] is not None})
        where = f" at batch {', '.join(map(str, batches))}" if batches else ""
        yield f"proof: {len(checks)} comparisons with {show_path(report['artifact'])}{where}, all within tolerance"
        yield f"  worst error {validation['max_error']:.2g} of the largest value, allowed {validation['tolerance']:.2g}"
    if state is not None:
        kept = f", {state['kept']} of them kept by the package" if state["kept"] else ""
        lost = f", {len(state['lost'])} NOT in the file" if state["lost"] else ""
        proven = ": bit for bit those that were packed (weights sha256)" if state["is_proven"] else ""
        yield f"tensors: {state['tensors']}{kept}{lost}{proven}"
    yield "artifacts"
    for artifact in report["artifacts"]:
        yield f"  {show_path(artifact['path'])}  {size_text(artifact['size_bytes'])}  sha256 {artifact['sha256']}"
    times = ", ".join(f"{stage.replace('_', ' ')} {seconds:.1f}" for stage, seconds in report["timings_s"].items())
    yield f"seconds: {times}"
