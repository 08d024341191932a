"""`bench`: prepare the alternatives, prove that they agree, time them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ensexport.bench.alternatives import find_maker
from ensexport.bench.comparing import check_same
from ensexport.bench.contents import Contents, weighed, with_members
from ensexport.bench.counting import Counts, count
from ensexport.bench.environment import describe_environment, n_cores
from ensexport.bench.files import Feeds, Files, make_feeds, prepare, weight_bytes
from ensexport.bench.names import MODES, OWN_LAYOUT, check_alternative, check_members, default_alternatives
from ensexport.bench.report import BenchReport, Row
from ensexport.bench.torch_loops import load_source
from ensexport.clock import OnStage
from ensexport.compare import Array
from ensexport.errors import ArtifactError, EnsexportError, MismatchError, ProviderError, UsageError
from ensexport.members import Members
from ensexport.members.selection import NO_SELECTION, Selection
from ensexport.members.trust import NO_TRUST, Trust
from ensexport.runtime import read_metadata
from ensexport.runtime.onnx_runner import check_provider
from ensexport.spec import parse_inputs
from ensexport.timing.exchange import write_feed
from ensexport.timing.measure import Timing, Worker, measure
from ensexport.timing.memory import available_mb

_PROCESS_SHARE = 1.3  # what a process takes, as a share of the weights it holds
_MEMORY_SHARE = 0.5  # of what is available: more at a time, and a machine may begin to swap


def bench(
    artifact: str | Path,
    checkpoints: Sequence[str | Path],
    *,
    model: str,
    model_args: Mapping[str, Any] | None = None,
    base_dir: str | Path | None = None,
    selection: Selection = NO_SELECTION,
    trust: Trust = NO_TRUST,
    allow_nonfinite: bool = False,
    batches: Sequence[int] = (1, 8, 64),
    n_members: Sequence[int] | None = None,
    blocks: int = 30,
    budget_s: float | None = None,
    provider: str = "cpu",
    alternatives: Sequence[str] | None = None,
    mode: str | None = None,
    tf32: bool = False,
    on_stage: OnStage | None = None,
) -> BenchReport:
    """Time an artifact against the loops its user would write otherwise.

    Args:
        artifact: An `.onnx`, `.ts` or `.pt2` file that ensexport wrote.
        checkpoints: The members it holds, in the same order.
        model: The architecture, by name: each alternative builds it in a process of its own.
        model_args: Keyword arguments of the architecture.
        base_dir: What a relative path in `model` is relative to.
        selection: Where in the files the weights lie, as for `load_members`.
        trust: What may run code, as for `load_members`.
        allow_nonfinite: Take members that hold NaN or Inf.
        batches: Batch sizes; without effect if the artifact has no dynamic batch.
        n_members: Sizes of ensembles of the first members, packed for the measurement; by default the artifact's own.
        blocks: Rounds of interleaved blocks.
        budget_s: Fewer rounds, but at least seven, where the slowest alternative would need more seconds for its blocks
            at one batch size.
        provider: `cpu`, `cuda` or `tensorrt`.
        alternatives: What to compare with; by default all there is.
        mode: `interleaved`: all alternatives take turns; `isolated`: only the artifact and one alternative are in
            memory at a time. By default interleaved, unless that would take more than half of the memory there is.
        tf32: On CUDA, let float32 products be computed in TF32, the artifact's and the alternatives' alike.
        on_stage: Called as `(stage, done, total)`.

    Raises:
        UsageError: An alternative, a number of members or a batch size cannot be measured.
        ProviderError: The provider is not there.
        ArtifactError: The artifact cannot be read, or holds another number of members.
        MismatchError: An alternative's outputs differ from the artifact's; nothing is timed then.
        BenchError: The artifact fails when it is run. An alternative that fails is left out and named instead.
        EnsexportError: The members cannot be read, or the artifact cannot be loaded.
    """
    tell = on_stage or (lambda stage, done, total: None)
    path = Path(artifact).resolve()
    wanted = default_alternatives(path, provider) if alternatives is None else tuple(dict.fromkeys(alternatives))
    for alternative in wanted:
        check_alternative(alternative, path, provider)
    if mode not in (None, *MODES):
        raise UsageError(f"unknown mode {mode!r}: expected one of {', '.join(map(repr, MODES))}.")
    metadata = read_metadata(path)
    contents = Contents.of(metadata)
    sizes = tuple(dict.fromkeys(n_members or (metadata["n_members"],)))
    check_members(sizes, metadata["n_members"])
    _check_runs(path, provider)
    tell("load", 0, 0)
    source: dict[str, Any] = {
        "checkpoints": [os.path.abspath(path) for path in checkpoints],
        "model": model,
        "model_args": dict(model_args or {}),
        "base_dir": str(Path(base_dir or ".").resolve()),
        "selection": asdict(selection),
        "trust": asdict(trust),
        "allow_nonfinite": allow_nonfinite,
        "any_float": contents.conversion is not None,
    }
    members = load_source(source)
    _check_count(artifact, metadata, members)
    found_mode, reason = _mode(mode, weight_bytes(members), 2 + len(wanted))
    rows: list[Row] = []
    counts: list[Counts] = []
    left_out: dict[str, str] = {}
    for size in sizes:
        own = members.first(size)
        with tempfile.TemporaryDirectory(prefix="ensexport-bench-") as folder:
            setup = _Setup(path, metadata, contents, own, Path(folder), wanted, source, provider, tf32, tell)
            setup.make(batches)
            timings = setup.timed(blocks, budget_s, found_mode)
            tell("profile", 0, 0)
            own_counts = count(
                setup.files, setup.feeds, timings, metadata, n_members=size, provider=provider, tf32=tf32
            )
            counts.append(own_counts)
        rows += counts[-1].rows
        prefix = f"with {size} members: " if len(sizes) > 1 else ""
        left_out |= {kind: prefix + why for kind, why in setup.files.left_out.items()}
    environment = describe_environment(provider, found_mode, reason, tf32=tf32)
    if contents.note:
        environment["method"] += f"; {contents.note}"
    peaks = next((entry.peak for entry in counts if entry.peak), {})
    return BenchReport(
        tuple(rows), {**environment, **peaks}, left_out, tuple(entry for found in counts for entry in found.work)
    )


def _check_count(artifact: str | Path, metadata: Mapping[str, Any], members: Members) -> None:
    if metadata["n_members"] != len(members):
        raise ArtifactError(
            f"'{artifact}' holds {metadata['n_members']} members, and {len(members)} checkpoints were given.",
            hint="Give exactly the checkpoints that were packed, in the same order.",
        )


def _check_runs(path: Path, provider: str) -> None:
    """Refuse a provider that is not there before any work."""
    if path.suffix == ".onnx":
        check_provider(provider)
    elif provider != "cpu" and not torch.cuda.is_available():
        raise ProviderError(
            f"cannot run '{path.name}' on {provider}: torch sees no CUDA device.", hint="Use --provider cpu."
        )


def _mode(wanted: str | None, size_bytes: int, n_processes: int) -> tuple[str, str]:
    """Return the mode, and why it was chosen where it was not asked for."""
    available = available_mb()
    needed = _PROCESS_SHARE * size_bytes * n_processes / 1e6
    if wanted is not None:
        return wanted, "asked for"
    if available is None or needed <= _MEMORY_SHARE * available:
        return "interleaved", "all processes fit into memory together"
    return "isolated", f"{n_processes} processes would take about {needed:.0f} MB of {available:.0f} MB"


@dataclass
class _Setup:
    """One ensemble, all or the first few of the members, and what it is compared with."""

    artifact: Path
    metadata: Mapping[str, Any]
    contents: Contents
    members: Members
    folder: Path
    alternatives: Sequence[str]
    source: Mapping[str, Any]
    provider: str
    tf32: bool
    tell: OnStage
    feeds: Feeds = field(default_factory=dict)
    files: Files = field(default_factory=lambda: Files(Path()))
    hidden: Feeds = field(default_factory=dict)

    def make(self, batches: Sequence[int]) -> None:
        """Make inputs and write files."""
        self.feeds = make_feeds(self.metadata, self.members, batches)
        self.tell("prepare", 0, 0)
        self.files = prepare(
            self.artifact,
            self.metadata,
            self.members,
            self.folder,
            self.alternatives,
            self.feeds,
            provider=self.provider,
        )
        compilers = [os.environ.get("CXX", ""), "g++", "clang++"]
        if "torch-compile" in self.alternatives and not any(shutil.which(name) for name in compilers if name):
            self.files.left_out["torch-compile"] = "there is no C++ compiler (g++ or clang++), which it needs."
        if self.contents.hidden:
            self.hidden = self._hidden_members()

    def _hidden_members(self) -> Feeds:
        """What the members return that the artifact only combines: by a process that ends before others begin."""
        job = self._job("packed", None)
        job |= {"maker": f"{with_members.__module__}:{with_members.__name__}", "hidden": list(self.contents.hidden)}
        found: Feeds = {}
        with Worker(job, self.folder) as worker:
            worker.wait_ready()
            for batch, feed in self.feeds.items():
                path = self.folder / "compare.npz"
                write_feed(path, feed)
                outputs = self.contents.members_first(worker.outputs(path))
                found[batch] = {name: outputs[name] for name in self.contents.hidden}
        return found

    def timed(self, blocks: int, budget_s: float | None, mode: str) -> dict[int | None, list[Timing]]:
        """Time all alternatives, or one after the other, each against the artifact."""
        kinds = [kind for kind in ("packed-again", *self.alternatives) if kind not in self.files.left_out]
        if mode == "interleaved":
            return self._together(["packed", *kinds], blocks, budget_s)
        timings: dict[int | None, list[Timing]] = {batch: [] for batch in self.feeds}
        for kind in kinds:
            for batch, (packed, *others) in self._together(["packed", kind], blocks, budget_s).items():
                timings[batch] += [packed, *others] if not timings[batch] else others
        return timings

    def _together(self, kinds: Sequence[str], blocks: int, budget_s: float | None) -> dict[int | None, list[Timing]]:
        """Time alternatives that take turns; the first is the artifact."""
        timings: dict[int | None, list[Timing]] = {}
        for_one_batch = {kind for kind, _ in self.files.by_batch}
        with ExitStack() as stack:
            self.tell("start", 0, 0)
            workers = self._started(stack, [self._job(kind, None) for kind in kinds if kind not in for_one_batch])
            for batch in self.feeds:
                workers = self._agreeing(workers, batch)
            for number, (batch, feed) in enumerate(self.feeds.items()):
                self.tell("measure", number, len(self.feeds))
                with ExitStack() as inner:
                    jobs = [self._job(kind, batch) for kind in kinds if kind in for_one_batch]
                    more = self._agreeing([workers[0], *self._started(inner, jobs)], batch)[1:] if jobs else []
                    taking_turns = [worker for worker in workers if worker.name not in self.files.left_out]
                    workers_now = sorted([*taking_turns, *more], key=lambda worker: kinds.index(worker.name))
                    timings[batch] = measure(workers_now, feed, blocks=blocks, budget_s=budget_s)
        return timings

    def _job(self, kind: str, batch: int | None) -> dict[str, Any]:
        path = self.files.path(kind, batch) or Path()
        is_own = kind in OWN_LAYOUT
        needs_weights = is_own and self.contents.must_be_given_weights(path)
        return {
            **self.source,
            "name": kind,
            "maker": f"{weighed.__module__}:{weighed.__name__}" if needs_weights else find_maker(kind, str(path)),
            "path": str(path),
            "needs_weights": needs_weights,
            "n_members": len(self.members),
            "inputs": [spec.name for spec in parse_inputs(self.metadata["inputs"])],
            "outputs": self.metadata["outputs"] if is_own else self.contents.outputs,
            "per_member": self.metadata["per_member"],
            "casts": self.contents.casts if is_own else {},
            "provider": self.provider,
            "tf32": self.tf32,
            "threads": n_cores(),
            "member_paths": self.files.member_paths(len(self.members)),
        }

    def _started(self, stack: ExitStack, jobs: Sequence[Mapping[str, Any]]) -> list[Worker]:
        """Start one process an alternative, all at once; those that cannot load are left out."""
        workers = [stack.enter_context(Worker(job, self.folder)) for job in jobs]
        kept = []
        for worker in workers:
            with self._leaving_out(worker.name):
                worker.wait_ready()
                kept.append(worker)
        return kept

    @contextmanager
    def _leaving_out(self, kind: str) -> Iterator[None]:
        """Note that an alternative fails (an LSTM under vmap, say) and go on without it; not so for the artifact."""
        try:
            yield
        except EnsexportError as error:
            if kind == "packed" or isinstance(error, MismatchError):
                raise
            self.files.left_out[kind] = error.message

    def _agreeing(self, workers: Sequence[Worker], batch: int | None) -> list[Worker]:
        """Refuse to time what does not compute the same; returns the workers that ran."""
        path = self.folder / "compare.npz"
        write_feed(path, self.feeds[batch])
        reference = self._outputs(workers[0], path)
        known = reference | self.hidden.get(batch, {})
        members = {name: known[name] for name in self.contents.outputs}
        kept = [workers[0]]
        for worker in workers[1:]:
            with self._leaving_out(worker.name):
                expected = reference if worker.name in OWN_LAYOUT else members
                outputs, conversion = self._outputs(worker, path), self.contents.conversion
                coarsest = None if conversion is None else conversion.coarsest
                check_same(worker.name, expected, outputs, self.contents.outputs, tf32=self.tf32, coarsest=coarsest)
                kept.append(worker)
        return kept

    def _outputs(self, worker: Worker, feed: Path) -> dict[str, Array]:
        """What a worker returns, the members' outputs with N first."""
        outputs = worker.outputs(feed)
        return self.contents.members_first(outputs) if worker.name in OWN_LAYOUT else outputs
