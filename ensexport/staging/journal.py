"""What is about to be moved, written down first, so that the next run can put back what a killed one moved away.

A rename is whole or not done; between two of them a process may be killed. Then a file beside a target (external data)
may be in place without its target, or an old folder moved away and the new one not in place: both are undone. A target
that is in place stays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ensexport.staging.moves import FileMove, FolderMove, Move

JOURNAL = "journal"


def write_journal(room: Path, moves: Sequence[Move]) -> None:
    """Write down all moves out of one staging folder.

    Args:
        room: The staging folder.
        moves: What will be moved, in order; each target follows the files beside it.

    Raises:
        OSError: The system refuses.
    """
    entries = [
        {"name": move.target.name, "is_folder": isinstance(move, FolderMove), "is_target": move.is_target,
         "inside": move.inside, "mark": move.mark}
        for move in moves
    ]  # fmt: skip
    with (room / JOURNAL).open("w", encoding="ascii") as file:
        json.dump(entries, file)
        file.flush()
        os.fsync(file.fileno())


def end_journal(room: Path) -> None:
    """From here on everything is in place, and nothing must be put back."""
    os.unlink(room / JOURNAL)


def recover(room: Path) -> None:
    """Undo what a dead process had begun and not ended.

    Args:
        room: Its staging folder.

    Raises:
        OSError: The system refuses.
    """
    group: list[Move] = []
    for move in _read(room):
        group.append(move)
        if move.is_target:
            if not move.is_placed():
                for one in reversed(group):
                    one.undo()
            group = []


def _read(room: Path) -> list[Move]:
    try:
        entries = json.loads((room / JOURNAL).read_bytes())
        moves: list[Move] = []
        for entry in entries:
            name, inside, is_target = str(entry["name"]), str(entry["inside"]), bool(entry["is_target"])
            if not _is_name(name) or not (inside == "" or _is_name(inside)):
                return []
            kind = FolderMove if entry["is_folder"] else FileMove
            mark = [int(part) for part in entry["mark"]]
            moves.append(kind(room, Path(name), is_target=is_target, inside=inside, mark=mark))
    except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
        return []  # none was made, or it was not yet whole: nothing was moved
    return moves


def _is_name(name: str) -> bool:
    """Is it the name of something in a folder, and no path that leads out of it?"""
    return name not in ("", ".", "..") and os.path.basename(name) == name
