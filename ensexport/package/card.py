"""The README.md of a package: a model card for whoever receives the folder, made of the manifest alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_MOST_MEMBERS = 100


def card_text(manifest: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """Return the card as Markdown.

    Args:
        manifest: What the package says of itself, all but its files.
        notes: What a client must know beside it, a sentence each.
    """
    return "\n".join(_lines(manifest, notes)) + "\n"


def _lines(manifest: Mapping[str, Any], notes: Sequence[str]) -> Iterator[str]:
    yield f"# {manifest['name'] or 'Ensemble'} of {manifest['n_members']} networks in one graph"
    yield ""
    yield (
        f"Packed by ensexport {manifest['tool']['version']}: the trained members of one architecture run in one call."
    )
    yield "`ensexport verify` checks this folder: every file's digest, then the samples stored in it."
    yield ""
    yield "## Inputs and outputs"
    yield ""
    yield "| name | dtype | shape | what |"
    yield "| --- | --- | --- | --- |"
    for entry in manifest["inputs"]:
        yield f"| `{entry['name']}` | {entry['dtype']} | {_shape(entry['shape'])} | {_input(entry)} |"
    for entry in manifest["outputs"]:
        yield f"| `{entry['name']}` | {entry['dtype']} | {_shape(entry['shape'])} | output: {_cell(entry['formula'])} |"
    yield ""
    yield "y_k is the output of member k, p_k its softmax, w_k the member's weight (the weights sum to 1)."
    for name, (low, high) in sorted(manifest["dims"].items()):
        yield f"`{name}` is dynamic: {low} to {'any size' if high is None else high}."
    if notes:
        yield ""
        yield from (f"- {note}" for note in notes)
    yield ""
    yield "## Members"
    yield ""
    yield "| k | source | sha256 |"
    yield "| ---: | --- | --- |"
    for member in manifest["members"][:_MOST_MEMBERS]:
        yield f"| {member['index']} | {_cell(member['name'])} | `{member['sha256'] or member['weights_sha256']}` |"
    more = len(manifest["members"]) - _MOST_MEMBERS
    if more > 0:
        yield f"| | and {more} more: `manifest.json` has all | |"
    yield ""
    yield "## Proof"
    yield ""
    yield from _proof(manifest["validation"])
    if manifest["dtypes"] is not None:
        dtypes = manifest["dtypes"]
        yield ""
        yield (
            f"Weights and arithmetic are {dtypes['inside']}, inputs and outputs {dtypes['io']}; the members are "
            f"{dtypes['members']}."
        )
    yield ""
    yield "## Made with"
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(manifest["libraries"].items()))
    opset = f", opset {manifest['opset']}" if manifest["opset"] else ""
    yield f"{versions}; for {manifest['plan']['target']}, strategy {manifest['plan']['strategy']}{opset}."


def _proof(validation: Mapping[str, Any]) -> Iterator[str]:
    if not validation["table"]:
        yield "NONE: nothing was compared with the members. Run `ensexport validate` before anybody relies on it."
        return
    whom = "every member" if validation["members"] == "all" else f"members {', '.join(map(str, validation['members']))}"
    batches = ", ".join(map(str, validation["batches"]))
    yield (
        f"Compared with {whom}, run one by one in PyTorch in float64{f', at batch {batches}' if batches else ''}. "
        "Errors are shares of the largest value."
    )
    yield ""
    yield "| file | provider | graph optimisation | output | comparisons | worst error | allowed |"
    yield "| --- | --- | --- | --- | ---: | ---: | ---: |"
    for row in validation["table"]:
        yield (
            f"| {row['file']} | {row['provider']} | {row['optimization'] or '-'} | `{row['output']}` | "
            f"{row['comparisons']} | {_number(row['max_rel'])} | {_number(row['bound'])} |"
        )


def _number(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float | int) else str(value)


def _shape(shape: list[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"


def _input(entry: Mapping[str, Any]) -> str:
    words = ["input"]
    words += ["one slice a member"] if entry["is_per_member"] else []
    words += ["may be left out"] if entry["is_optional"] else []
    return ", ".join(words)


def _cell(text: str) -> str:
    """Text in a table: nothing of it ends the cell or the line."""
    return "".join(c if c.isprintable() else " " for c in text).replace("\\", "\\\\").replace("|", "\\|")
