"""What a hostile file is: how it is made, and the error that it must give."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BAD, UNSAFE, NONFINITE = "E_CHECKPOINT", "E_UNSAFE_CHECKPOINT", "E_NONFINITE"
EXITS = {BAD: 3, UNSAFE: 3, NONFINITE: 3, "E_NO_CHECKPOINT": 3, "E_INPUT_REFUSED": 3, "E_USAGE": 2, None: 0}


@dataclass(frozen=True)
class Case:
    """One file: `make(folder)` writes it and returns what to load.

    Attributes:
        row: The row of the list of cases.
        name: What is special about it.
        make: Writes it.
        code: The error it must give; None if it must load.
    """

    row: str
    name: str
    make: Callable[[Path], Path]
    code: str | None = BAD

    @property
    def id(self) -> str:
        """How the test is called."""
        return f"{self.row}: {self.name}"


def written(data, name="m.pt"):
    """A maker of one file; `data` is bytes, or a function that gives them."""

    def make(folder):
        path = folder / name
        path.write_bytes(data() if callable(data) else data)
        return path

    return make
