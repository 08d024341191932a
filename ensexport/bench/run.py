"""`bench`: prepare the alternatives, prove that they agree, time them."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from ensexport.batching.examples import find_example
from ensexport.batching.member_graph import capture_member
from ensexport.bench.exchange import write_feed
from ensexport.bench.measure import BLOCK_S, Timing, Worker, measure
from ensexport.bench.names import DEFAULT_ALTERNATIVES, SESSION_LOOPS, check_alternative, other_format
from ensexport.compare import Array, compare_arrays
from ensexport.errors import ArtifactError, EnsexportError, MismatchError, SpeedupError, UsageError
from ensexport.members import Members, load_members
from ensexport.pipeline import export
from ensexport.probes import make_probes
from ensexport.runtime import read_metadata
from ensexport.runtime.torch_runner import array_from_tensor
from ensexport.spec import TensorSpec, Tolerance, parse_inputs
from ensexport.stacking.state import named_tensors
from ensexport.targets.onnx import member_onnx_model, write_onnx

OnStage = Callable[[str, int, int], None]
Feeds = dict[int | None, dict[str, Array]]


@dataclass(frozen=True)
class BenchReport:
    """What was measured.

    Attributes:
        timings: Batch size (None: the artifact has no dynamic batch) -> one row an alternative, the artifact first.
        environment: Versions, processor, threads, provider, method.
        left_out: Alternative -> why it could not be run.
    """

    timings: Mapping[int | None, tuple[Timing, ...]]
    environment: Mapping[str, Any]
    left_out: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        rows = [{"batch": batch, **asdict(row)} for batch, timings in self.timings.items() for row in timings]
        return {"results": rows, "environment": dict(self.environment), "left_out": dict(self.left_out)}

    def check_speedup(self, minimum: float, alternative: str) -> None:
        """Refuse a speedup below `minimum` at any batch size.

        Raises:
            SpeedupError: Names the batch sizes and the ratios reached, or why the alternative was not measured.
        """
        if alternative in self.left_out or not self.timings:
            raise SpeedupError(
                f"'{alternative}' was not measured, so no speedup over it can be shown: "
                f"{self.left_out.get(alternative, 'nothing was')}",
                **self.to_dict(),
            )
        rows = {b: row for b, timings in self.timings.items() for row in timings if row.alternative == alternative}
        short = [
            f"{row.ratio:.2f} times as fast as '{alternative}' at batch {batch} (95 % interval {row.ratio_low:.2f} to "
            f"{row.ratio_high:.2f})"
            for batch, row in rows.items()
            if row.ratio < minimum
        ]
        if short:
            raise SpeedupError(
                f"the artifact is {', '.join(short)}: expected at least {minimum:g}.",
                hint="Measure on a machine with nothing else running before believing it.",
                **self.to_dict(),
            )


def bench(
    artifact: str | Path,
    checkpoints: Sequence[str | Path],
    *,
    model: str,
    model_args: Mapping[str, Any] | None = None,
    base_dir: str | Path | None = None,
    batches: Sequence[int] = (1, 8, 64),
    blocks: int = 30,
    provider: str = "cpu",
    alternatives: Sequence[str] = DEFAULT_ALTERNATIVES,
    on_stage: OnStage | None = None,
) -> BenchReport:
    """Time an artifact against the loops its user would write otherwise.

    Args:
        artifact: An `.onnx`, `.ts` or `.pt2` file that ensexport wrote.
        checkpoints: The members it holds, in the same order.
        model: The architecture, by name: each alternative builds it in a process of its own.
        model_args: Keyword arguments of the architecture.
        base_dir: What a relative path in `model` is relative to.
        batches: Batch sizes; without effect if the artifact has no dynamic batch.
        blocks: Rounds of interleaved blocks.
        provider: `cpu`, `cuda` or `tensorrt`.
        alternatives: What to compare with.
        on_stage: Called as `(stage, done, total)`.

    Raises:
        UsageError: An alternative or batch size cannot be measured.
        ArtifactError: The artifact cannot be read, or holds another number of members.
        MismatchError: An alternative's outputs differ from the artifact's; nothing is timed then.
        BenchError: The artifact fails when it is run. An alternative that fails is left out and named instead.
        EnsexportError: The members cannot be read, or the artifact cannot be loaded.
    """
    tell = on_stage or (lambda stage, done, total: None)
    path = Path(artifact).resolve()
    for alternative in alternatives:
        check_alternative(alternative, path)
    metadata = read_metadata(path)
    tell("load", 0, 0)
    members = load_members(list(checkpoints), model, model_args=model_args, base_dir=base_dir)
    _check_count(artifact, metadata, members)
    feeds = make_feeds(metadata, members, batches)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ensexport-bench-")))
        tell("prepare", 0, 0)
        paths, left_out = _prepare(path, metadata, members, folder, alternatives)
        job = {
            "checkpoints": [str(Path(member.path).resolve()) for member in members],
            "model": model,
            "model_args": dict(model_args or {}),
            "base_dir": str(Path(base_dir or Path.cwd()).resolve()),
            "n_members": len(members),
            "inputs": [spec.name for spec in parse_inputs(metadata["inputs"])],
            "outputs": metadata["outputs"],
            "per_member": metadata["per_member"],
            "provider": provider,
            "threads": _n_cores(),
            "member_paths": [str(folder / f"member_{k}.onnx") for k in range(len(members))],
        }
        kinds = dict.fromkeys(("packed", "packed again", *alternatives, other_format(path)))
        jobs = [{**job, "kind": kind, "path": str(paths.get(kind, ""))} for kind in kinds if kind not in left_out]
        tell("start", 0, 0)
        workers = _started(stack, jobs, folder, left_out)
        for feed in feeds.values():
            workers = _agreeing(workers, feed, metadata, folder, left_out)
        timings: dict[int | None, tuple[Timing, ...]] = {}
        for number, (batch, feed) in enumerate(feeds.items()):
            tell("measure", number, len(feeds))
            timings[batch] = tuple(measure(workers, feed, blocks=blocks))
    return BenchReport(timings, _environment(provider), left_out)


def _check_count(artifact: str | Path, metadata: Mapping[str, Any], members: Members) -> None:
    if metadata["n_members"] != len(members):
        raise ArtifactError(
            f"'{artifact}' holds {metadata['n_members']} members, and {len(members)} checkpoints were given.",
            hint="Give exactly the checkpoints that were packed, in the same order.",
        )


def make_feeds(metadata: Mapping[str, Any], members: Members, batches: Sequence[int]) -> Feeds:
    """Random inputs of the ensemble at each batch size; one feed under None if no dim is dynamic.

    Raises:
        UsageError: The artifact does not take a batch size.
    """
    specs: tuple[TensorSpec, ...] = parse_inputs(metadata["inputs"])
    probes = make_probes(
        specs,
        metadata["per_member"],
        len(members),
        example_sizes=find_example(members.build(0), specs).sizes,
        dim_ranges={name: (low, high) for name, (low, high) in metadata["dims"].items()},
        batches=batches,
        seeds=(0,),
    )
    feeds = {probe.batch: {n: array_from_tensor(t) for n, t in probe.feed.items()} for probe in probes}
    if None not in feeds and set(feeds) != set(batches):
        missing = ", ".join(str(batch) for batch in batches if batch not in feeds)
        raise UsageError(f"the artifact does not take batch {missing}: its dims are {dict(metadata['dims'])}.")
    return feeds


def _prepare(
    path: Path, metadata: Mapping[str, Any], members: Members, folder: Path, alternatives: Sequence[str]
) -> tuple[dict[str, Path], dict[str, str]]:
    """Write the files the alternatives need; returns alternative -> its artifact, and what cannot be written."""
    specs = parse_inputs(metadata["inputs"])
    paths, left_out = {"packed": path, "packed again": path}, {}
    loops = [kind for kind in SESSION_LOOPS if kind in alternatives]
    try:
        if loops:
            write_member_files(members, specs, metadata["outputs"], folder)
    except EnsexportError as error:
        left_out = dict.fromkeys(loops, error.message)
    other = other_format(path)
    files = {other: "packed.ts" if other == "torchscript" else "packed.onnx"}
    if "unrolled" in alternatives:
        files["unrolled"] = "unrolled.onnx"
    for kind, name in files.items():
        paths[kind] = folder / name
        try:
            export(
                members,
                paths[kind],
                inputs=specs,
                per_member=metadata["per_member"],
                output_names=metadata["outputs"],
                strategy="unrolled" if kind == "unrolled" else "auto",
                batches=(3,),
                seeds=(0,),
            )
        except EnsexportError as error:
            left_out[kind] = error.message
    return paths, left_out


def write_member_files(members: Members, specs: Sequence[TensorSpec], outputs: Sequence[str], folder: Path) -> None:
    """Write each member as an ONNX file of its own, `member_K.onnx`: what a loop over sessions runs."""
    module = members.build(0)
    model, sources = member_onnx_model(capture_member(module, specs, find_example(module, specs)), outputs)
    for index in range(len(members)):
        state = named_tensors(members.build(index))
        weights = {name: state[source] for name, source in sources.items() if source in state}
        write_onnx(model, folder / f"member_{index}.onnx", weights, {})


def _started(
    stack: ExitStack, jobs: Sequence[Mapping[str, Any]], folder: Path, left_out: dict[str, str]
) -> list[Worker]:
    """Start one process an alternative, all at once; those that cannot load go to `left_out`."""
    workers = [stack.enter_context(Worker(job, folder)) for job in jobs]
    kept = []
    for worker in workers:
        with _leaving_out(worker.name, left_out):
            worker.wait_ready()
            kept.append(worker)
    return kept


@contextmanager
def _leaving_out(kind: str, left_out: dict[str, str]) -> Iterator[None]:
    """Note that an alternative fails (an LSTM under vmap, say) and go on without it; not so for the artifact."""
    try:
        yield
    except EnsexportError as error:
        if kind == "packed" or isinstance(error, MismatchError):
            raise
        left_out[kind] = error.message


def _agreeing(
    workers: Sequence[Worker], feed: Mapping[str, Array], metadata: Mapping[str, Any], folder: Path,
    left_out: dict[str, str],
) -> list[Worker]:  # fmt: skip
    """Refuse to time what does not compute the same; returns the workers that ran."""
    path = folder / "compare.npz"
    write_feed(path, feed)
    reference = workers[0].outputs(path)
    by_member = {name: np.moveaxis(value, metadata["member_axis"], 0) for name, value in reference.items()}
    kept = [workers[0]]
    for worker in workers[1:]:
        with _leaving_out(worker.name, left_out):
            outputs = worker.outputs(path)
            if worker.name == "packed again":
                outputs = {name: np.moveaxis(value, metadata["member_axis"], 0) for name, value in outputs.items()}
            _check_same(worker.name, by_member, outputs)
            kept.append(worker)
    return kept


def _check_same(kind: str, expected: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Compare at ten times the floor of the proof: two roundings may lie on different sides of the truth."""
    for name, reference in expected.items():
        difference = compare_arrays(reference, outputs[name])
        bound = 10 * Tolerance.FLOORS.get(str(reference.dtype), 0.0)
        if difference.max_rel > bound:
            where = f" at member {difference.index[0]}" if difference.index else ""
            raise MismatchError(
                f"'{kind}' returns another '{name}' than the artifact{where}: max abs diff {difference.max_abs:.3g}, "
                f"relative {difference.max_rel:.3g} > {bound:.3g}. Nothing was timed.",
                hint="Run `ensexport validate` on the artifact and these checkpoints.",
            )


def _environment(provider: str) -> dict[str, Any]:
    return {
        "provider": provider,
        "threads": _n_cores(),
        "processor": _processor(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "onnxruntime": ort.__version__,
        "method": "one process an alternative, all others stopped meanwhile; interleaved blocks of "
        f"{BLOCK_S * 1e3:.0f} ms, medians of per-block ratios",
    }


def _n_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
