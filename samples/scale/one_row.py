"""Measure one row: link its members, copy them against the clock, pack them, and note what came out."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from child import Account, ChildError, check, run_checked, run_child
from disk import link_members, missing_space, size_bytes, time_copy
from networks import HERE, Network
from plan import Row

# The graph, logs and the like, beside the weights.
_SPARE_BYTES = 200_000_000


@dataclass(frozen=True)
class Setting:
    """What all rows of a call share.

    Attributes:
        folder: An empty folder on the disk that is measured.
        limit_s: Seconds a child may take.
        may_choose_validation: Does this ensexport know `--validate-members`? If not, it compares all.
        say: Told how far it is.
    """

    folder: Path
    limit_s: float
    may_choose_validation: bool
    say: Callable[[str], None]


def measure_rows(network: Network, rows: Sequence[Row], setting: Setting) -> Iterator[dict[str, Any]]:
    """Write a network's checkpoints once and measure its rows; a failure is kept as a text, so that others can go on.

    Args:
        network: What is packed in these rows.
        rows: Rows that share its checkpoints.
        setting: Where, and within which limits.

    Yields:
        The record of each row as soon as it is measured.
    """
    checkpoints = setting.folder / "checkpoints"
    checkpoints.mkdir()
    n_files = max(row.n_files for row in rows)
    setting.say(f"{network.title}: writing {n_files} checkpoints")
    try:
        facts = _written(network, checkpoints, n_files, setting.limit_s)
    except ChildError as error:
        yield from (_head(row, network) | {"error": _hide_folders(str(error), setting)} for row in rows)
        return
    files = sorted(checkpoints.iterdir())
    for row in rows:
        record = _head(row, network) | facts
        try:
            _measure(record, row, network, files, setting)
        except (ChildError, OSError) as error:
            record["error"] = _hide_folders(str(error), setting)
            setting.say(f"  failed: {record['error']}")
        _empty(setting.folder, but=checkpoints)
        yield record


def _measure(record: dict[str, Any], row: Row, network: Network, files: Sequence[Path], setting: Setting) -> None:
    """Fill in what is found out about one row."""
    record["validate"] = row.validate if setting.may_choose_validation else "all"
    setting.say(f"{row.name}: {row.n_members} x {network.title}, validated: {record['validate']}")
    links = link_members(files, setting.folder / "members", row.n_members, row.n_files)
    record["checkpoint_bytes"] = size_bytes(links)
    problem = missing_space(setting.folder, record["checkpoint_bytes"] + _SPARE_BYTES)
    if problem:
        raise OSError(problem)
    if row.has_export:
        account = _export_one(network, links[0], setting)
        record |= {"export_s": round(account.seconds, 2), "export_peak_mb": round(account.peak_mb, 1)}
    copies = [time_copy(links, setting.folder / "copy")] if row.has_copy else []
    _pack(record, network, setting)
    if row.has_copy:
        copies.append(time_copy(links, setting.folder / "copy"))
        record["copy_s"] = [round(seconds, 3) for seconds in copies]
    setting.say(
        f"  {record['seconds']:.1f} s, at most {record['peak_mb']:.0f} MB; {record['packed_bytes'] / 1e6:.0f} MB"
    )


def _pack(record: dict[str, Any], network: Network, setting: Setting) -> None:
    """Pack with the command line; the files it writes are removed again."""
    output = setting.folder / "packed"
    output.mkdir()
    command = [sys.executable, "-m", "ensexport", "pack", str(setting.folder / "members"), *network.options]
    command += ["-o", str(output / "ensemble.onnx"), "--json"]
    if setting.may_choose_validation:
        command += ["--validate-members", record["validate"]]
    os.sync()
    account = run_child(command, HERE, setting.limit_s)
    # Noted even where it failed: how far it came tells why.
    record |= {"seconds": round(account.seconds, 2), "peak_mb": round(account.peak_mb, 1)}
    answer = json.loads(check(account, "pack").stdout)
    written = sorted(output.iterdir())
    record["packed_bytes"] = size_bytes(written)
    record["strategy"] = answer["plan"]["strategy"]
    record["timings_s"] = answer["timings_s"]
    record["peak_memory_mb"] = answer.get("peak_memory_mb", {})
    shutil.rmtree(output)


def _written(network: Network, folder: Path, n_files: int, limit_s: float) -> dict[str, int]:
    command = [sys.executable, "write_checkpoints.py", network.name, str(folder), str(n_files)]
    account = run_checked(command, HERE, limit_s, "write_checkpoints.py")
    facts: dict[str, int] = json.loads(account.stdout)
    return facts


def _export_one(network: Network, checkpoint: Path, setting: Setting) -> Account:
    folder = setting.folder / "one"
    folder.mkdir()
    os.sync()
    command = [sys.executable, "export_one.py", network.name, str(checkpoint), str(folder / "one.onnx")]
    account = run_checked(command, HERE, setting.limit_s, "the export of one member")
    shutil.rmtree(folder)
    return account


def _head(row: Row, network: Network) -> dict[str, Any]:
    return {"name": row.name, "network": network.title, "n_members": row.n_members, "n_files": row.n_files}


def _hide_folders(text: str, setting: Setting) -> str:
    return text.replace(str(setting.folder), ".").replace(str(HERE.parents[1]), ".")


def _empty(folder: Path, *, but: Path) -> None:
    for path in folder.iterdir():
        if path != but:
            shutil.rmtree(path)
