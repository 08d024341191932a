"""What one layer of an ensemble costs: batched, and as one node a member.

The ratio of the two is looked up in a table measured on a real machine (`tables/*.json`, made by
`samples/benchmarks/calibrate.py` and `make_table.py`): the nearest layers of the same kind, by the logarithms of their
sizes. Where no table has been measured yet the rule of thumb in `rule_sets.py` decides.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

_NEIGHBOURS = 3


@dataclass(frozen=True)
class Layer:
    """One layer of one member, as far as its speed depends on it.

    Attributes:
        kind: `conv`, `pointwise` (filters of size 1), `depthwise`, `linear` (an input a member) or `wide` (a linear
            layer whose input all members share); with `-odd` behind it where the channels are no multiple of 8, which
            ONNX Runtime's blocked convolutions want.
        inputs: Input channels or features.
        outputs: Output channels or features.
        rows: Rows of the product for one sample: pixels, tokens, or 1.
        batch: Samples.
        flops: Floating-point operations of one member.
    """

    kind: str
    inputs: int
    outputs: int
    rows: int
    batch: int
    flops: float

    @property
    def _place(self) -> tuple[float, ...]:
        # A linear layer does not know which of its rows are samples.
        rows, batch = (self.rows * self.batch, 1) if self.kind in ("linear", "wide") else (self.rows, self.batch)
        return tuple(math.log2(max(size, 1)) for size in (self.inputs, self.outputs, rows, batch))

    def distance(self, other: Layer) -> float:
        """How unlike two layers of one kind are: the Euclidean distance of the logarithms of their sizes."""
        return math.dist(self._place, other._place)


@dataclass(frozen=True)
class Measured:
    """One row of a table.

    Attributes:
        layer: What was measured.
        ratio: Time of the batched form over the time of N separate nodes; below 1 batching wins.
        apart_us: Microseconds of N separate nodes.
        n_members: N.
    """

    layer: Layer
    ratio: float
    apart_us: float
    n_members: int


@dataclass(frozen=True)
class Cost:
    """Estimated seconds of one layer of the ensemble, both ways."""

    batched_s: float
    apart_s: float


def estimate(layer: Layer, n_members: int, table: Sequence[Measured]) -> Cost | None:
    """Estimate from the nearest rows of a table; None if it has no layer of this kind."""
    rows = [row for row in table if row.layer.kind == layer.kind]
    if not rows:
        return None
    nearest = sorted(rows, key=lambda row: layer.distance(row.layer))[:_NEIGHBOURS]
    shares = [1 / (0.1 + layer.distance(row.layer) ** 2) for row in nearest]
    log_ratio = sum(share * math.log(row.ratio) for share, row in zip(shares, nearest, strict=True)) / sum(shares)
    first = nearest[0]
    work = layer.flops * n_members / (first.layer.flops * first.n_members)
    apart_s = first.apart_us * 1e-6 * work
    return Cost(apart_s * math.exp(log_ratio), apart_s)


@functools.cache
def read_table(name: str) -> tuple[Measured, ...]:
    """Return the rows of `tables/<name>.json`; none if that has not been measured."""
    file = resources.files("ensexport.batching") / "tables" / f"{name}.json"
    if not file.is_file():
        return ()
    keys = ("kind", "inputs", "outputs", "rows", "batch", "flops")
    return tuple(
        Measured(Layer(**{key: row[key] for key in keys}), row["ratio"], row["apart_us"], row["n_members"])
        for row in json.loads(file.read_text())["rows"]
    )
