"""`Staging`: the one writer, for files and folders."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType

from ensexport.errors import OutputError
from ensexport.resources import Reserve
from ensexport.staging.checks import check_file, check_folder, check_names
from ensexport.staging.journal import end_journal, write_journal
from ensexport.staging.moves import NEW, FileMove, FolderMove, Move
from ensexport.staging.rooms import SCRATCH, Room, alone_in, clear_stale, make_room
from ensexport.staging.system import default_modes, sync_folder, writing


class Staging:
    """A hidden folder beside each target, removed on leaving; `commit` moves what was finished into place.

    Whoever makes one first removes the hidden folders that killed processes have left beside the targets.

    Args:
        targets: The files to be written.
        force: Replace targets that exist. Of folders only empty ones and packages of this tool are replaced.
        folders: The folders to be written. Each must get this tool's `manifest.json`, or `force` will not replace it.
        watched: Folders that a server reads: the staging folder of what goes there is made beside them, where that is
            the same file system and may be written to. A Triton server takes every folder in its repository for a
            model.

    Attributes:
        targets: The files.
        folders: The folders.

    Raises:
        TargetExistsError: A target exists and `force` is False.
        OutputError: A target's parent is missing or cannot be written to, or what is there is never replaced.
        UsageError: The same target is named twice, or one lies in another.
    """

    def __init__(
        self, targets: Sequence[Path], *, force: bool, folders: Sequence[Path] = (), watched: Collection[Path] = ()
    ) -> None:
        self.targets = [Path(target) for target in targets]
        self.folders = [Path(folder) for folder in folders]
        self.force = force
        self._rooms: dict[Path, Room] = {}
        self._reserve: Reserve | None = None
        check_names(self.targets, self.folders)
        self._homes = {target.parent: (target.parent, "") for target in (*self.targets, *self.folders)}
        for parent in self._homes.keys() & set(watched):
            self._homes[parent] = _outside(parent)
        for place in dict.fromkeys((*self._homes, *(home for home, _ in self._homes.values()))):
            clear_stale(place)  # first, for it may put a target back
        for target in self.targets:
            with writing(target):
                check_file(target, force=force)
        for folder in self.folders:
            with writing(folder):
                check_folder(folder, force=force)

    def __enter__(self) -> Staging:
        self._reserve = Reserve()  # to list a folder takes memory, and that there is none may be why we leave
        try:
            for target in (*self.targets, *self.folders):
                if target.parent not in self._rooms:
                    with writing(target):
                        make_room(self._homes[target.parent][0], functools.partial(self._note, target.parent))
            for folder in self.folders:
                with writing(folder):
                    self.path(folder).mkdir()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._remove()

    def _note(self, parent: Path, room: Room) -> None:
        self._rooms[parent] = room

    def _remove(self) -> None:
        if self._reserve is not None:
            self._reserve.release()
        try:
            for room in self._rooms.values():
                room.remove()
        finally:
            self._rooms.clear()

    def path(self, target: Path) -> Path:
        """Where to write `target` for now: a file to be made, or an empty folder.

        It has the final name, so files may refer to each other by name.
        """
        return self._rooms[Path(target).parent].path / NEW / Path(target).name

    def scratch(self, target: Path) -> Path:
        """A file beside `target` for what is needed meanwhile; it is never put into place."""
        return self._rooms[Path(target).parent].path / SCRATCH

    def commit(self) -> list[Path]:
        """Move everything that was staged into place and return the final paths.

        Files beside a target (external data) go before it, so that no target is ever seen without them. If one of
        several moves fails, those already made are undone.

        Raises:
            TargetExistsError: A file is in the way and `force` is False.
            OutputError: A target was not staged, what is there is never replaced, or the operating system refused.
        """
        planned = self._planned()
        for parent, moves in planned.items():
            room = self._rooms[parent].path
            with writing(moves[0].target):
                modes = default_modes(room)
            for move in moves:
                with writing(move.target):
                    move.prepare(*modes)
            with writing(moves[0].target):
                write_journal(room, moves)
        with contextlib.ExitStack() as alone:
            for place in sorted({moves[0].place.parent for moves in planned.values()}):  # in one order: no deadlock
                alone.enter_context(alone_in(place))
            self._make([move for moves in planned.values() for move in moves])
        return [move.target for moves in planned.values() for move in moves]

    def _make(self, moves: Sequence[Move]) -> None:
        begun: list[Move] = []
        try:
            for move in moves:
                begun.append(move)
                with writing(move.target):
                    move.make(force=self.force)
            for place, target in {move.place.parent: move.target for move in moves}.items():
                with writing(target.parent):
                    sync_folder(place)
            for room in self._rooms.values():
                with writing(moves[0].target):
                    end_journal(room.path)
        except BaseException as error:
            self._undo(begun, error)
            raise

    def _planned(self) -> dict[Path, list[Move]]:
        """What is to be moved, by parent: each target follows the files that are named after it."""
        planned: dict[Path, list[Move]] = {}
        for parent, room in self._rooms.items():
            targets = [target for target in self.targets if target.parent == parent]
            folders = [target for target in self.folders if target.parent == parent]
            known = {target.name for target in (*targets, *folders)}
            beside = [name for name in sorted(os.listdir(room.path / NEW)) if name not in known]
            inside = self._homes[parent][1]
            moves: list[Move] = []
            for target in targets:
                for name in [name for name in beside if name.startswith(target.name) or target == targets[-1]]:
                    beside.remove(name)
                    moves.append(FileMove(room.path, parent / name, is_target=False, inside=inside))
                moves.append(FileMove(room.path, target, inside=inside))
            moves += [FolderMove(room.path, target, inside=inside) for target in folders]
            planned[parent] = moves
        return planned

    def _undo(self, begun: Sequence[Move], cause: BaseException) -> None:
        failed = []
        for move in reversed(begun):
            try:
                move.undo()
            except OSError:
                failed.append(move)
        if failed:
            # What is in the staging folders may be all there is of what was replaced.
            rooms = {room.path: room.keep() for room in self._rooms.values()}
            self._rooms.clear()
            kept = [rooms[move.room] / move.kept.relative_to(move.room) for move in failed]
            raise OutputError(
                f"cannot write '{failed[0].target}', and cannot put back what was there ({cause}).",
                hint=f"What was replaced is kept: {', '.join(map(str, kept))}.",
            ) from cause


def _outside(folder: Path) -> tuple[Path, str]:
    """The folder around one, and what the inner one is called there.

    The folder itself, and no name, where the one around it is another file system or may not be written to.
    """
    inner = Path(os.path.realpath(folder))
    try:
        is_one_system = os.stat(inner.parent).st_dev == os.stat(inner).st_dev
    except OSError:
        return folder, ""
    return (inner.parent, inner.name) if is_one_system and os.access(inner.parent, os.W_OK | os.X_OK) else (folder, "")
