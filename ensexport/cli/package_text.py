"""What is known of a package, as plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ensexport.dtypes import Conversion
from ensexport.members.wording import show_path
from ensexport.resources import size_text

MOST_MEMBERS = 40
_DIGITS = 12


def verify_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What `verify` found."""
    yield f"{show_path(report['package'])}  manifest sha256 {report['manifest_sha256']}"
    yield f"files: {report['files']}, all as the manifest lists them, and nothing else"
    yield from _member_lines(report["members"], most=MOST_MEMBERS)
    if report["checks"]:
        yield "samples, run again"
    for check in report["checks"]:
        level = f", graph optimisation {check['optimization']}" if check["optimization"] else ""
        where = f"{show_path(check['file'])}  {check['provider']}{level}, {show_path(check['sample'])}"
        off = f"{check['max_rel']:.2g} of the largest value, allowed {check['bound']:.2g}"
        yield f"  {where}, {check['output']}: {off}"
    for entry in report["not_run"]:
        where = f" on {entry['provider']}" if entry["provider"] else ""
        yield f"not run: {show_path(entry['file'])}{where}: {entry['reason']}"
    for warning in report["warnings"]:
        yield f"warning: {warning}"
    run = list(dict.fromkeys(show_path(check["file"]) for check in report["checks"]))
    gives = "gives" if len(run) == 1 else "give"
    what = f"{', '.join(run)} {gives} what the samples hold" if run else "as far as its bytes go, for nothing was run"
    yield f"verified: the package is what its manifest says; {what}"


def package_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What a package's manifest says."""
    manifest = report["manifest"]
    total = size_text(sum(entry["size_bytes"] for entry in manifest["files"]))
    name = "" if manifest["name"] is None else f" '{manifest['name']}'"
    yield (
        f"{show_path(report['package'])}  package{name}, layout {manifest['layout']}, {len(manifest['files'])} files, "
        f"{total}"
    )
    yield f"  manifest sha256 {report['manifest_sha256']}, written by ensexport {manifest['tool']['version']}"
    yield from _member_lines(manifest["members"], weights=manifest["member_weights"])
    yield "inputs"
    for entry in manifest["inputs"]:
        notes = ["one slice a member"] if entry["is_per_member"] else []
        notes += ["may be left out"] if entry["is_optional"] else []
        yield f"  {_tensor(entry)}" + (f"  ({', '.join(notes)})" if notes else "")
    yield f"outputs, members on axis {manifest['member_axis']}"
    for entry in manifest["outputs"]:
        yield f"  {_tensor(entry)}  {entry['formula']}".rstrip()
    for dim, (low, high) in manifest["dims"].items():
        yield f"  {dim}: {low} to {'any size' if high is None else high}"
    conversion = Conversion.from_json(manifest["dtypes"])
    if conversion is not None:
        yield f"dtypes: {conversion.describe()}"
    yield f"files, as listed: `ensexport verify {show_path(report['package'])}` hashes them"
    for entry in manifest["files"]:
        opset = f", opset {manifest['opset']}" if entry["format"] == "onnx" else ""
        size = size_text(entry["size_bytes"])
        yield f"  {show_path(entry['path'])}  {entry['format']}{opset}, {size}, sha256 {entry['sha256'][:_DIGITS]}"
    yield from _validation_lines(manifest["validation"])
    for swap in manifest["swaps"]:
        index, old = swap["member_index"], swap["replaced"]
        yield f"member {index} was replaced by {show_path(swap['name'])}, before {show_path(old['name'])}"
    yield from (f"note: {note}" for note in manifest["notes"])
    for sample in manifest["samples"]:
        batch = "" if sample["batch"] is None else f" at batch {sample['batch']}"
        source = "the loop over the members" if sample["expected_from"] == "loop" else "the file itself"
        yield f"sample {show_path(sample['folder'])}: {sample['source']}{batch}, expected from {source}"
    if not manifest["samples"]:
        yield "samples: none"
    yield f"packed for {manifest['plan']['target']}, strategy {manifest['plan']['strategy']}"


def _member_lines(
    members: Sequence[Mapping[str, Any]], *, weights: object = None, most: int | None = None
) -> Iterator[str]:
    yield f"members ({len(members)})"
    for member in members[:most]:
        digest = member["sha256"] or member.get("weights_sha256", "")
        weight = f"  weight {weights[member['index']]:g}" if isinstance(weights, list) else ""
        sha256 = f"  sha256 {digest[:_DIGITS]}" if digest else ""
        yield f"  {member['index']:>3}  {show_path(member['name'])}{sha256}{weight}"
    if most is not None and len(members) > most:
        yield f"  ... {len(members) - most} more: `ensexport inspect` lists all"


def _tensor(entry: Mapping[str, Any]) -> str:
    dims = ",".join("?" if dim is None else str(dim) for dim in entry["shape"])
    return f"{entry['name']}:{entry['dtype']}[{dims}]"


def _validation_lines(validation: Mapping[str, Any]) -> Iterator[str]:
    if validation["passed"] is None:
        yield "proof: NONE, nothing was compared with the loop (--validate-members none)"
        return
    count = sum(row["comparisons"] for row in validation["table"])
    members = validation["members"]
    whom = "the members" if members == "all" else f"{len(members)} of the members ({', '.join(map(str, members))})"
    yield f"proof, when it was packed: {count} comparisons with the loop over {whom}, all within tolerance"
    for row in validation["table"]:
        level = f", graph optimisation {row['optimization']}" if row["optimization"] else ""
        where = f"{show_path(row['file'])}  {row['provider']}{level}, {row['output']}"
        yield f"  {where}: worst {_number(row['max_rel'])} of the largest value, allowed {_number(row['bound'])}"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2g}"
