"""The line that moves on a terminal: what is being done, how much of it, how fast, how long it will take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from ensexport.resources import size_text


class ProgressBar:
    """One line for the stage at work; use it in a `with`.

    Args:
        words: A stage's name -> what is being done.
        in_bytes: Whether a stage counts bytes.
        console: Where to show it.
    """

    def __init__(self, words: Callable[[str], str], in_bytes: Callable[[str], bool], console: Console) -> None:
        self._words, self._in_bytes = words, in_bytes
        self._stage = ""
        self._task: TaskID | None = None
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), _Bar(bar_width=20), _Figures())
        self._progress = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> ProgressBar:
        self._progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)

    def show(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done; a total of 0 says that nobody knows."""
        if stage != self._stage or self._task is None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._stage = stage
            self._task = self._progress.add_task(
                self._words(stage), total=total or None, in_bytes=self._in_bytes(stage)
            )
        self._progress.update(self._task, completed=done, total=total or None)


class _Bar(BarColumn):
    """A bar, where there is an end."""

    def render(self, task: Task) -> Any:
        return super().render(task) if task.total else Text("")


class _Figures(ProgressColumn):
    """`1.2 GB of 3.5 GB, 220.0 MB/s, 0:00:11 left` or `3 of 10, 0:00:11 left`."""

    def render(self, task: Task) -> Text:
        return Text(figures(task))


def figures(task: Task) -> str:
    """What is known of a stage, in words."""
    if not task.total:
        return ""
    in_bytes = task.fields["in_bytes"]
    done, total = int(task.completed), int(task.total)
    parts = [f"{size_text(done)} of {size_text(total)}" if in_bytes else f"{done} of {total}"]
    speed = task.speed
    if in_bytes and speed:
        parts.append(f"{size_text(int(speed))}/s")
    if task.time_remaining and done < total:
        minutes, seconds = divmod(int(task.time_remaining), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left")
    return ", ".join(parts)
