"""Write `docs/scale.md` out of the measurements beside it.

    python report.py

The page says nothing that the JSON file and `notes.toml` do not; do not edit it by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from picture import draw_curves
from plan import ROWS
from records import Record, read_records
from verdicts import Verdict, judge_all, read_notes

DOCS = Path(__file__).parents[2] / "docs"
INTRODUCTION = """# Packing at size

Written by `make bench-scale` (`samples/scale/measure.py`) from [scale.json](scale.json); do not edit it. Every row is a
call of `ensexport pack ... --json` as a user would make it. Time is from the start of its process to the end, import of
torch included; peak memory is what the operating system counted for that process (`ru_maxrss` of `wait4`), pages of
mapped files included. The checkpoints are random, float32, written by `torch.save`, and in the page cache, as they are
after a training. A plain copy reads and writes the same files piece by piece until they are on the disk; it is timed
before and after, and the mean counts. MB and GB are powers of ten."""


def write_page(folder: Path = DOCS) -> Path:
    """Write the page of the measurements in a folder, and its picture if matplotlib is there."""
    records = read_records(folder / "scale.json")
    has_picture = draw_curves(records, folder / "scale.svg")
    path = folder / "scale.md"
    path.write_text(page(records, read_notes(), has_picture=has_picture))
    return path


def page(records: Sequence[Record], notes: Mapping[str, str], *, has_picture: bool) -> str:
    """The page as text."""
    parts = [INTRODUCTION, *_machine(records)]
    if has_picture:
        parts.append("![Time and peak memory of pack over the number of members](scale.svg)")
    parts += ["## Goals", *_goals(list(judge_all(records, notes)))]
    parts += ["## All rows", *_rows(records)]
    parts += ["## Stages", *_stages(records)]
    return "\n\n".join(parts) + "\n"


def _machine(records: Sequence[Record]) -> Iterator[str]:
    """What it was measured on; one paragraph, more only if the records differ."""
    if not records:
        yield "Nothing was measured yet."
        return
    yield from dict.fromkeys(_facts(record) for record in records)
    if any(record["is_quick"] for record in records):
        yield "Rows of a quick run pack a tiny network instead: they show that all runs, not what it costs."
    commands = "\n".join(dict.fromkeys(f"    {record['command']}" for record in records))
    yield f"Measured with\n\n{commands}"


def _facts(record: Record) -> str:
    facts = record["environment"]
    return (
        f"{record['date']}: {facts['processor']}, {facts['threads']} cores, {facts['memory_mb'] / 1e3:.1f} GB of "
        f"memory, torch {facts['torch']}, onnx {facts['onnx']}, ONNX Runtime {facts['onnxruntime']}, "
        f"Python {facts['python']}, ensexport {facts['ensexport']}."
    )


def _goals(verdicts: Sequence[Verdict]) -> Iterator[str]:
    rows = [[one.what, one.goal, one.measured or "-", _met(one)] for one in verdicts]
    yield _table(["what", "goal", "measured", "met"], rows, right=set())
    known = [one for one in verdicts if one.is_met is not None]
    met = sum(one.is_met is True for one in known)
    yield f"{met} of {len(known)} judged goals are met; {len(verdicts) - len(known)} are not judged."


def _rows(records: Sequence[Record]) -> Iterator[str]:
    known = {record["name"]: record for record in records}
    heads = ["row", "network", "N", "validated", "packed MB", "s", "peak MB", "copy s", "export of one s"]
    cells = [_cells(row.name, known.get(row.name)) for row in ROWS]
    yield _table(heads, cells, right={2, 4, 5, 6, 7, 8})
    failed = [f"- {record['name']}: {_short(record['error'])}." for record in records if "error" in record]
    if failed:
        yield "\n".join(["Failed:", "", *failed])
    linked = [record for record in records if record["n_files"] < record["n_members"]]
    for record in linked:
        yield (
            f"The {record['n_members']} checkpoints of `{record['name']}` are hard links to {record['n_files']} files "
            "in turn: all is read and written, but the input takes little space and stays in the page cache."
        )


def _cells(name: str, record: Record | None) -> list[str]:
    if record is None:
        return [name, *["-"] * 8]
    copies = record.get("copy_s", ())
    return [
        name,
        record["network"],
        str(record["n_members"]),
        record.get("validate", "-"),
        _number(record.get("packed_bytes"), 1e6),
        _number(record.get("seconds"), digits=1),
        _number(record.get("peak_mb")),
        " and ".join(f"{seconds:.1f}" for seconds in copies) or "-",
        _number(record.get("export_s"), digits=1),
    ]


def _stages(records: Sequence[Record]) -> Iterator[str]:
    """The command's own account of where time and memory went: `timings_s` and `peak_memory_mb` of its JSON."""
    own = [record for record in records if "timings_s" in record]
    if not own:
        yield "Nothing was measured yet."
        return
    stages = list(dict.fromkeys(stage for record in own for stage in record["timings_s"]))
    rows = [
        [record["name"], *(_stage(record, stage) for stage in stages)]
        for record in own
    ]  # fmt: skip
    yield "Seconds of each stage, as `--json` tells them, and behind them the most memory during it, in MB:"
    yield _table(["row", *(stage.replace("_", " ") for stage in stages)], rows, right=set(range(1, len(stages) + 1)))


def _stage(record: Record, stage: str) -> str:
    if stage not in record["timings_s"]:
        return "-"
    peak = record["peak_memory_mb"].get(stage)
    return f"{record['timings_s'][stage]:.1f}" + ("" if peak is None else f" ({peak:.0f})")


# -- words -----------------------------------------------------------------------------------------


def _met(one: Verdict) -> str:
    if one.is_met:
        return "yes"
    if one.is_met is None:
        return f"not judged: {_short(one.reason)}" if one.reason else "not measured"
    return f"no: {_short(one.reason) or 'the reason is not known yet'}"


def _number(value: float | None, unit: float = 1.0, digits: int = 0) -> str:
    return "-" if value is None else f"{value / unit:.{digits}f}"


def _short(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:400].rstrip(".")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: set[int]) -> str:
    rule = ["---:" if place in right else "---" for place in range(len(heads))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows))


if __name__ == "__main__":
    print(write_page(*map(Path, sys.argv[1:2])))
