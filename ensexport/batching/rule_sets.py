"""The rule sets behind `--target`: which form each layer takes on which hardware.

`cpu` follows the table measured with ONNX Runtime on a CPU, where batching can lose: at large batches grouped
convolutions read all members' filters for every image, and products of several matrices are shared out among the
threads matrix by matrix. `cuda` follows its own table once there is one; until then a rule of thumb: a convolution is
grouped while one member leaves the chip unfilled, and linear layers are always one strided-batched product.
`portable`, the default, batches for the sake of GPUs, but not where the CPU's table says that a CPU would lose much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from ensexport.batching.costs import Cost, Layer, estimate, read_table
from ensexport.batching.placement import LINEARS, Placement, Site, cheapest, layer_of
from ensexport.errors import UsageError

BATCHES = (1, 1, 8)  # that a file is made for when nothing else is said; most services send one sample a call
_MULTIPROCESSORS = 132  # of an H100 or H200
_TILE = (128, 64)  # rows and columns of the product that one of them computes at a time
_FLOPS_A_SECOND = 2e13
_LAUNCH_S = 3e-6


@dataclass(frozen=True)
class RuleSet:
    """What `--target` chooses.

    Attributes:
        name: `portable`, `cpu`, `cuda` or `tensorrt`.
        provider: Where ONNX files are checked and timed: `cpu`, `cuda` or `tensorrt`.
        margin: What running apart must gain to be chosen, as a factor: tables have their noise, and a batched graph is
            the smaller one.
        merges: Join linear layers that read the same input.
    """

    name: str
    provider: str
    margin: float
    merges: bool

    def placement(self, batches: Sequence[int] = BATCHES) -> Placement:
        """The rule that places the heavy ops, for some batch sizes."""
        on_gpu = self.provider != "cpu"
        table = read_table("cuda" if on_gpu else "cpu")

        def cost(layer: Layer | None, n_members: int) -> Cost:
            if layer is None:
                return Cost(0.0, 0.0)
            found = estimate(layer, n_members, table)
            return found or (_gpu_cost(layer, n_members) if on_gpu else Cost(0.0, 0.0))

        def place(site: Site) -> frozenset[fx.Node]:
            costs = {
                node: [cost(layer_of(site, node, batch), site.n_members) for batch in batches] for node in site.heavy
            }
            return cheapest(costs, site, batches, self.margin)

        return place


_SETS = {
    "portable": RuleSet("portable", "cpu", 1.25, merges=False),
    "cpu": RuleSet("cpu", "cpu", 1.015, merges=False),
    "cuda": RuleSet("cuda", "cuda", 1.015, merges=True),
    "tensorrt": RuleSet("tensorrt", "tensorrt", 1.015, merges=True),
}
TARGETS = tuple(_SETS)


def rule_set(target: str) -> RuleSet:
    """Return the rule set of a target.

    Raises:
        UsageError: There is no such target.
    """
    if target not in _SETS:
        raise UsageError(f"unknown target {target!r}: expected one of {', '.join(map(repr, _SETS))}.")
    return _SETS[target]


def hybrids() -> dict[str, Placement]:
    """Placements that `--strategy tune` tries besides the rules: parts of the network apart.

    `linears apart`: all linear layers; `early apart` and `late apart`: the first and the last half of the work.
    """

    def linears(site: Site) -> frozenset[fx.Node]:
        return frozenset(node for node in site.heavy if node.target in LINEARS)

    def late(site: Site) -> frozenset[fx.Node]:
        return frozenset(site.heavy) - early(site)

    def early(site: Site) -> frozenset[fx.Node]:
        layers = [layer_of(site, node, 1) for node in site.heavy]
        work = [0.0 if layer is None else layer.flops for layer in layers]
        done, chosen = 0.0, set()
        for node, own in zip(site.heavy, work, strict=True):
            if 2 * done < sum(work):
                chosen.add(node)
            done += own
        return frozenset(chosen)

    return {"linears apart": linears, "early apart": early, "late apart": late}


def _gpu_cost(layer: Layer, n_members: int) -> Cost:
    """Rule of thumb, not yet measured: tiles of work over the multiprocessors, and a launch a node."""
    rows = layer.rows * layer.batch
    tiles = math.ceil(rows / _TILE[0]) * math.ceil(layer.outputs / _TILE[1])
    fill = min(1.0, tiles / _MULTIPROCESSORS)
    apart = n_members * max(_LAUNCH_S, layer.flops / (_FLOPS_A_SECOND * fill))
    if layer.kind in ("linear", "wide"):
        return Cost(max(_LAUNCH_S, n_members * layer.flops / (_FLOPS_A_SECOND * min(1.0, fill * n_members))), apart)
    # cuDNN's grouped convolutions reach 0.35 to 1.1 of separate ones once those fill the chip.
    full = n_members * layer.flops / (_FLOPS_A_SECOND * min(1.0, fill * n_members))
    return Cost(max(_LAUNCH_S, full * (1.0 if fill < 1.0 else 1.4)), apart)
