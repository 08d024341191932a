"""`--strategy`: which batched graph to write; with `tune`, by timing the candidates on this machine."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ensexport.batching.engine import BatchedGraph
from ensexport.batching.rule_sets import BATCHES, RuleSet, hybrids
from ensexport.compare import Array
from ensexport.errors import EnsexportError, ExportError, UsageError
from ensexport.spec import Trial
from ensexport.timing.measure import Timing, time_files

STRATEGIES = ("auto", "stacked", "unrolled", "tune")
TUNE_BATCHES = (1, 8)
_BLOCKS = 15  # rounds
_GAIN = 0.98  # another candidate than the rules' own must take at most this share of its time
_CHUNKS = (2, 4)

Make = Callable[[Mapping[str, Any]], BatchedGraph]
Write = Callable[[BatchedGraph, Path], None]


@dataclass(frozen=True)
class Candidates:
    """How candidates of `tune` are made and timed.

    Attributes:
        make: Returns the batched graph of the ensemble, given options of `batch_graph`.
        write: Writes a batched graph with the members' weights to a file.
        suffix: What the file is called at its end: its format.
        feeds: Batch size (None: none is dynamic) -> inputs.
        outputs: Names of the outputs.
    """

    make: Make
    write: Write
    suffix: str
    feeds: Mapping[int | None, Mapping[str, Array]]
    outputs: Sequence[str]


def graph_options(
    strategy: str, rules: RuleSet, batches: Sequence[int] = BATCHES, *, chunks: int = 1
) -> dict[str, Any]:
    """The options of `batch_graph` that a strategy stands for.

    Args:
        strategy: `auto` (batched where the rules of the target promise a gain), `stacked` (everything batched) or
            `unrolled` (N branches).
        rules: The target's rules.
        batches: Batch sizes the rules are asked for.
        chunks: Groups that `auto` runs one after the other, where activations would not fit into memory.

    Raises:
        UsageError: There is no such strategy.
    """
    if strategy not in STRATEGIES[:-1]:
        raise UsageError(f"unknown strategy {strategy!r}: expected one of {', '.join(map(repr, STRATEGIES))}.")
    if strategy == "auto":
        return {"strategy": strategy, "placement": rules.placement(batches), "merges": rules.merges, "chunks": chunks}
    return {"strategy": strategy}


def tuned(candidates: Candidates, rules: RuleSet, provider: str, *, tell: Callable[[int, int], None]) -> BatchedGraph:
    """Time the candidates and return the fastest.

    Candidates are everything batched (`stacked`), the rules' own choice (`auto`, where that is another), hybrids with
    one part of the network run once a member, the members in chunks, and everything unrolled. The rules' choice is kept
    unless another is at least 2 % faster, by the geometric mean over the batch sizes.

    Args:
        candidates: How to make and time them.
        rules: The target's rules.
        provider: Where to time them.
        tell: Called with the number of candidates written and their number.

    Raises:
        ExportError: No candidate could be written.
        ProviderError: The provider is not there.
    """
    graphs: dict[str, BatchedGraph] = {}
    with tempfile.TemporaryDirectory(prefix="ensexport-tune-") as folder:
        files: dict[str, Path] = {}
        named = list(_options(rules, [batch for batch in candidates.feeds if batch is not None]))
        refusal: EnsexportError | None = None
        for number, (name, options) in enumerate(named):
            tell(number, len(named))
            try:
                graph = candidates.make(options)
                if any(_same(graph, other) for other in graphs.values()):
                    continue
                path = Path(folder) / f"{number}{candidates.suffix}"
                candidates.write(graph, path)
            except ExportError as error:  # `stacked` refuses what only branches can hold
                refusal = error
                continue
            graphs[name], files[name] = graph, path
        if not graphs:
            assert refusal is not None
            raise refusal
        rows = time_files(
            files,
            list(candidates.feeds.values()),
            provider=provider,
            blocks=_BLOCKS,
            outputs=candidates.outputs,
        )
    trials = tuple(_trial(row, batch) for batch, timings in zip(candidates.feeds, rows, strict=True) for row in timings)
    winner = choose(trials)
    graph = graphs[winner]
    return replace(graph, plan=replace(graph.plan, winner=winner, trials=trials))


def _trial(row: Timing, batch: int | None) -> Trial:
    figures = (row.median_ms, row.ratio, row.ratio_low, row.ratio_high)
    return Trial(row.alternative, batch, *(round(figure, 4) for figure in figures))


def choose(trials: Sequence[Trial]) -> str:
    """The candidate to keep: the rules' own, unless another takes at most 98 % of its time over all batch sizes."""
    names = list(dict.fromkeys(trial.candidate for trial in trials))
    means = {
        name: math.exp(
            sum(math.log(trial.ratio) for trial in trials if trial.candidate == name)
            / sum(trial.candidate == name for trial in trials)
        )
        for name in names
    }
    best = min(names, key=means.__getitem__)
    own = "auto" if "auto" in means else names[0]
    return best if means[best] <= _GAIN * means[own] else own


def _options(rules: RuleSet, batches: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "stacked", graph_options("stacked", rules)
    yield "auto", graph_options("auto", rules, batches or BATCHES)
    for name, placement in hybrids().items():
        yield name, {"strategy": "auto", "placement": placement}
    for chunks in _CHUNKS:
        yield f"{chunks} chunks", {"strategy": "auto", "chunks": chunks}
    yield "unrolled", graph_options("unrolled", rules)


def _same(one: BatchedGraph, other: BatchedGraph) -> bool:
    """Do two graphs consist of the same calls on the same weights?"""
    return _text(one) == _text(other)


def _text(graph: BatchedGraph) -> list[str]:
    return [
        f"{node.name} {node.target} {node.args} {node.kwargs} {node.meta.get('packed')}" for node in graph.graph.nodes
    ]
