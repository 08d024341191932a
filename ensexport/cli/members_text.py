"""What is known of members and of what was not taken, as plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ensexport.dtypes import Conversion
from ensexport.emission import from_json
from ensexport.members.wording import join_numbers, show_path
from ensexport.resources import size_text
from ensexport.weighting import WEIGHTS_INPUT

_MAX_METRICS = 3
_MAX_DIFFERING = 12


def members_lines(report: Mapping[str, Any], *, most: int | None = None) -> Iterator[str]:
    """One line a member and one a skipped file; `inspect` and a dry run know more of each.

    Args:
        report: What a command answers.
        most: Show no more members than this; None for all.
    """
    taken = [member for member in report["members"] if member["index"] is not None]
    yield f"members ({len(taken)})"
    for member in report["members"][:most]:
        path = show_path(member["path"])
        if member["index"] is None:
            yield f"    x  {path}  refused, see below"
            continue
        yield f"  {member['index']:>3}  {path}  {', '.join([*_facts(member), 'sha256 ' + member['sha256'][:12]])}"
        notes = "; ".join(_notes(member))
        if notes:
            yield f"       {notes}"
    if most is not None and len(report["members"]) > most:
        yield f"  ... {len(report['members']) - most} more: `ensexport inspect` lists all"
    for skipped in report["skipped"]:
        yield f"    -  {show_path(skipped['path'])}  skipped: {skipped['reason']}"


def inspection_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """All that `inspect` found."""
    yield from members_lines(report)
    differing = report["differing"]
    if differing["shaping"] or differing["harmless"]:
        yield "the members' options differ"
    for kind, meaning in (("shaping", "  (may change the network: compare with --model-args)"), ("harmless", "")):
        for name, values in list(differing[kind].items())[:_MAX_DIFFERING]:
            yield f"  {name}: {', '.join(map(_short, values))}{meaning}"
        more = len(differing[kind]) - _MAX_DIFFERING
        if more > 0:
            yield f"  and {more} more"
    if report["warnings"]:
        yield "warnings"
    for warning in report["warnings"]:
        yield f"  {warning}"
    yield from _verdict(report)


def artifact_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What an artifact says of itself."""
    opset = f", opset {report['opset']}" if report["opset"] else ""
    yield f"{show_path(report['path'])}  {report['format']}{opset}, {size_text(report['size_bytes'])}"
    yield f"  sha256 {report['sha256']}, written by ensexport {report['ensexport_version']}"
    yield f"members ({report['n_members']})"
    weights = report.get("member_weights")
    for member in report["members"]:
        digest = member["sha256"] or member["weights_sha256"]
        weight = f"  weight {weights[member['index']]:g}" if isinstance(weights, list) else ""
        yield f"  {member['index']:>3}  {show_path(member['name'])}  sha256 {digest[:12]}{weight}"
    yield "inputs, as one member sees them"
    for spec in report["inputs"]:
        name = spec.partition(":")[0]
        yield f"  {spec}" + ("  (one slice a member)" if name in report["per_member"] else "")
    if isinstance(weights, str):
        default = "must be given" if report["format"] == "pt2" else "may be left out: all alike"
        yield f"  {WEIGHTS_INPUT}:float32[{report['n_members']}]  (how much each member counts; {default})"
    yield from _output_lines(report)
    for name, (low, high) in report["dims"].items():
        yield f"  {name}: {low} to {'any size' if high is None else high}"
    conversion = Conversion.from_json(report.get("dtypes"))
    if conversion is not None:
        yield f"dtypes: {conversion.describe()}"
    yield f"packed for {report['target']}, strategy {report['strategy']}"


def _output_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The outputs, and how each is made of the members' where it is more than these."""
    names, axis = report["outputs"], f"outputs, members on axis {report['member_axis']}"
    emitted = from_json(report.get("emit"), names)
    if not any(entry.combined for entry in emitted):
        yield f"{axis}: {', '.join(names)}"
        return
    yield f"{axis}, made of the members' y_k with weights w_k that sum to 1"
    width = max(map(len, names))
    for name in names:
        yield f"  {name:<{width}}  {report['formulas'].get(name, '')}".rstrip()
    for entry in emitted:
        if entry.needs_classes:
            yield f"  p_k of {entry.output}: softmax of y_k over axis {entry.class_axis} of one member's output"


def _verdict(report: Mapping[str, Any]) -> Iterator[str]:
    problems: Sequence[Mapping[str, Any]] = report["problems"]
    count = len(report["members"])
    if not problems:
        members = f"{count} member" if count == 1 else f"all {count} members"
        yield f"{members} can be packed" + ("" if report["architecture"] else ", as far as can be seen without --model")
        return
    yield f"pack would refuse this: {len(problems)} {'problem' if len(problems) == 1 else 'problems'}"
    for problem, others in _grouped(problems, report["members"]):
        yield f"  [{problem['code']}] {problem['message']}"
        if others:
            yield f"    The same for {'member' if len(others) == 1 else 'members'} {join_numbers(others)}."
        if problem["hint"]:
            yield f"    {problem['hint']}"


def _grouped(
    problems: Sequence[Mapping[str, Any]], members: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], list[int]]]:
    """Each problem once, with the other members that have the same, their own name apart."""
    owners = [member for member in members if member["problem"] and member["index"] is not None]
    groups: dict[tuple[str, str], tuple[Mapping[str, Any], list[int]]] = {}
    for problem in problems:
        owner = next((member for member in owners if member["problem"] == problem), None)
        label = "" if owner is None else f"member {owner['index']} ({show_path(owner['path'])}"
        key = problem["code"], problem["message"].replace(label, "") if label else problem["message"]
        if key in groups and owner is not None:
            groups[key][1].append(owner["index"])
        else:
            groups[key] = (problem, [])
    return list(groups.values())


def _facts(member: Mapping[str, Any]) -> Iterator[str]:
    if "size_bytes" not in member:
        return
    yield size_text(member["size_bytes"])
    yield f"{_count(member['n_values'])} values of {' and '.join(member['dtypes']) or 'nothing'}"
    if member["epoch"] is not None:
        yield f"epoch {member['epoch']:g}"
    for name, value in list(member["metrics"].items())[:_MAX_METRICS]:
        yield f"{name} {_short(value)}"


def _notes(member: Mapping[str, Any]) -> Iterator[str]:
    if member.get("note"):
        yield str(member["note"])
    if member.get("part") is not None:
        yield f"number {member['part']} in the file"
    if member["container_key"]:
        kind = {"ema": " (averaged)", "raw": " (raw)"}.get(member.get("weights") or "", "")
        yield f"under '{member['container_key']}'{kind}"
    if member["stripped_prefix"]:
        yield f"prefix '{member['stripped_prefix']}' dropped"
    if member.get("problem"):
        yield "refused, see below"


def _count(number: int) -> str:
    """`11.7 M`."""
    for limit, unit in ((10**9, " G"), (10**6, " M"), (10**4, " k")):
        if number >= limit:
            return f"{number / (1000 if unit == ' k' else limit):.1f}{unit}"
    return str(number)


def _short(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 and text.isprintable() else repr(text[:40]) + ("..." if len(text) > 40 else "")
