"""What `bench` measured, and whether it is enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ensexport.errors import SpeedupError
from ensexport.timing.measure import Timing


@dataclass(frozen=True)
class Row:
    """One alternative at one batch size and number of members.

    Attributes:
        batch: Batch size; None where the artifact has no dynamic batch.
        n_members: How many members.
        timing: What was measured.
        nodes: Op type -> kernels that ONNX Runtime runs in one call; None for what it does not run.
        roofline_share: The least time that the machine could need, over the time it took; None where it is not known.
    """

    batch: int | None
    n_members: int
    timing: Timing
    nodes: Mapping[str, int] | None = None
    roofline_share: float | None = None

    @property
    def where(self) -> str:
        """How messages name it."""
        members = f"{self.n_members} member{'' if self.n_members == 1 else 's'}"
        return members if self.batch is None else f"batch {self.batch}, {members}"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        nodes = None if self.nodes is None else {"total": sum(self.nodes.values()), "by_op": dict(self.nodes)}
        return {
            "batch": self.batch,
            "n_members": self.n_members,
            **asdict(self.timing),
            "nodes": nodes,
            "roofline_share": self.roofline_share,
        }


@dataclass(frozen=True)
class BenchReport:
    """What was measured.

    Attributes:
        rows: One an alternative, batch size and number of members; the artifact first.
        environment: Versions, processor, threads, provider, method, the machine's peaks.
        left_out: Alternative -> why it could not be run, everywhere or somewhere.
        work: What one call must do at each batch size and number of members.
    """

    rows: tuple[Row, ...]
    environment: Mapping[str, Any]
    left_out: Mapping[str, str]
    work: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "results": [row.to_dict() for row in self.rows],
            "work": [dict(entry) for entry in self.work],
            "environment": dict(self.environment),
            "left_out": dict(self.left_out),
        }

    def check_speedup(self, minimum: float, alternative: str) -> None:
        """Refuse a speedup below `minimum` at any batch size or number of members.

        Raises:
            SpeedupError: Names them and the ratios reached, or why the alternative was not measured.
        """
        rows = [row for row in self.rows if row.timing.alternative == alternative]
        if alternative in self.left_out or not rows:
            raise SpeedupError(
                f"'{alternative}' was not measured, so no speedup over it can be shown: "
                f"{self.left_out.get(alternative, 'it was not asked for.')}",
                **self.to_dict(),
            )
        short = [
            f"{row.timing.ratio:.2f} times as fast as '{alternative}' at {row.where} (95 % interval "
            f"{row.timing.ratio_low:.2f} to {row.timing.ratio_high:.2f})"
            for row in rows
            if row.timing.ratio < minimum
        ]
        if short:
            raise SpeedupError(
                f"the artifact is {', '.join(short)}: expected at least {minimum:g}.",
                hint="Measure on a machine with nothing else running before believing it.",
                **self.to_dict(),
            )
