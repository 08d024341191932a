"""What is wrong with a package, in one form: which file, what was expected, what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ensexport.errors import PackageError
from ensexport.members.wording import join_some, quote_path

_MOST_SHOWN = 8
_MOST_KEPT = 1000


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it should be.

    Attributes:
        path: The file or folder, below the package.
        what: What is wrong; `{path}: {what}` is a sentence.
    """

    path: str
    what: str

    def __str__(self) -> str:
        return f"{quote_path(self.path)}: {self.what}"


def as_text(value: str | bytes) -> str:
    """A string of a protobuf message; it comes as bytes where it is no UTF-8."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def package_error(folder: Path, problems: Sequence[Problem]) -> PackageError:
    """The error for all problems of a package together.

    Args:
        folder: The package.
        problems: At least one.
    """
    count = "" if len(problems) == 1 else f" ({len(problems)} problems)"
    return PackageError(
        f"{quote_path(folder)} is not what its manifest says{count}: "
        f"{join_some([str(problem) for problem in problems], limit=_MOST_SHOWN)}.",
        hint="Do not use it: get the package anew from where it was made.",
        problems=[{"path": problem.path, "problem": problem.what} for problem in problems[:_MOST_KEPT]],
    )
