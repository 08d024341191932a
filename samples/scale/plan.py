"""What is packed, in which order: the rows of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

MOST_DISTINCT = 2


@dataclass(frozen=True)
class Row:
    """One call of `ensexport pack`, and what is measured beside it.

    Attributes:
        name: How options, the JSON and notes call it.
        network: Of which network.
        n_members: N.
        validate: What `--validate-members` is told.
        n_files: How many of the members are files of their own; the others are hard links to these in turn, so that no
            tensor is the same in all members, which would be stored once.
        has_copy: Time a plain copy of the checkpoints too, before and after.
        has_export: Time torch's own export of one member too.
    """

    name: str
    network: str
    n_members: int
    validate: str = "none"
    n_files: int = 0
    has_copy: bool = False
    has_export: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_files", self.n_files or self.n_members)


# 87 ViT-B are 30.1 GB. A network's rows stand together: they share its checkpoints.
ROWS = (
    *(Row(f"resnet50-{n}", "resnet50", n) for n in (1, 2, 4, 8, 16)),
    *(Row(f"mlp-{n}", "mlp", n) for n in (10, 100, 1000)),
    Row("mlp-1000-validated", "mlp", 1000, "all"),
    Row("vit-4", "vit", 4, has_copy=True),
    Row("vit-10", "vit", 10, has_copy=True, has_export=True),
    Row("vit-16", "vit", 16, has_copy=True),
    Row("vit-10-validated", "vit", 10, "all"),
    Row("larger", "vit", 87, n_files=MOST_DISTINCT),
)
NAMES = tuple(row.name for row in ROWS)


def select(patterns: Sequence[str]) -> list[Row]:
    """The rows whose names match one of these; `vit-*` has a star for any text."""
    return [row for row in ROWS if any(fnmatchcase(row.name, pattern) for pattern in patterns)]


def by_network(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The rows of each network, in order."""
    for network in dict.fromkeys(row.network for row in rows):
        yield network, [row for row in rows if row.network == network]
