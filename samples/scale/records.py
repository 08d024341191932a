"""The file of measurements: one record a row, kept after every row, so that a run can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plan import NAMES

Record = Mapping[str, Any]


def read_records(path: Path) -> list[Record]:
    """The records of a file; none if there is no file."""
    return list(json.loads(path.read_text())["rows"]) if path.exists() else []


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write a file of records, one a line; what was there stays whole until the new file is."""
    lines = ",\n".join(f"  {json.dumps(record)}" for record in records)
    new = path.with_name(f".{path.name}.new")
    new.write_text('{"rows": [\n' + lines + "\n]}\n")
    os.replace(new, path)


def replaced(records: Iterable[Record], new: Record) -> list[Record]:
    """The records, in the order of the plan, with a new one in the place of the older of the same row."""
    known = {record["name"]: record for record in records} | {new["name"]: new}
    return sorted(known.values(), key=lambda record: NAMES.index(record["name"]))


def find(records: Iterable[Record], name: str) -> Record | None:
    """The record of a row; None where it was not measured or failed."""
    found = next((record for record in records if record["name"] == name), None)
    return None if found is None or "error" in found else found
