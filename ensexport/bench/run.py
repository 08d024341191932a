"""`bench`: prepare the alternatives, prove that they agree, time them."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from ensexport.batching.examples import find_example
from ensexport.batching.member_graph import capture_member
from ensexport.bench.measure import Timing, Worker, measure
from ensexport.compare import compare_arrays
from ensexport.errors import MismatchError, SpeedupError
from ensexport.members import Members, load_members
from ensexport.pipeline import export
from ensexport.probes import make_probes
from ensexport.runtime import read_metadata
from ensexport.runtime.torch_runner import array_from_tensor
from ensexport.spec import Tolerance, parse_inputs
from ensexport.stacking.state import named_tensors
from ensexport.targets.onnx import member_onnx_model, write_onnx

OnStage = Callable[[str, int, int], None]
DEFAULT_ALTERNATIVES = (
    "loop",
    "strong loop",
    "strong loop, 1 thread",
    "threads",
    "unrolled",
    "torch loop",
    "torch.vmap",
)


@dataclass(frozen=True)
class BenchReport:
    """What was measured.

    Attributes:
        timings: Batch size -> one row an alternative, the packed artifact first.
        environment: Versions, processor, threads, provider.
        left_out: Alternative -> why it could not be run.
    """

    timings: Mapping[int, tuple[Timing, ...]]
    environment: Mapping[str, Any]
    left_out: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        rows = [{"batch": batch, **asdict(row)} for batch, timings in self.timings.items() for row in timings]
        return {"results": rows, "environment": dict(self.environment), "left_out": dict(self.left_out)}

    def check_speedup(self, minimum: float, alternative: str) -> None:
        """Refuse a speedup below `minimum` at any batch size.

        Raises:
            SpeedupError: Names the batch size and the ratio reached.
        """
        for batch, timings in self.timings.items():
            row = next((row for row in timings if row.alternative == alternative), None)
            if row is None:
                raise SpeedupError(f"'{alternative}' was not measured, so no speedup over it can be shown.")
            if row.ratio < minimum:
                raise SpeedupError(
                    f"at batch {batch} the artifact is {row.ratio:.2f} times as fast as '{alternative}' "
                    f"(95 % interval {row.ratio_low:.2f} to {row.ratio_high:.2f}): expected at least {minimum:g}.",
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
        checkpoints: The members it holds.
        model: The architecture, by name: each alternative builds it in a process of its own.
        model_args: Keyword arguments of the architecture.
        base_dir: What a relative path in `model` is relative to.
        batches: Batch sizes.
        blocks: Rounds of interleaved blocks.
        provider: `cpu`, `cuda` or `tensorrt`.
        alternatives: What to compare with.
        on_stage: Called as `(stage, done, total)`.

    Raises:
        MismatchError: An alternative's outputs differ from the artifact's; nothing is timed then.
        EnsexportError: The artifact or the members cannot be read.
    """
    tell = on_stage or (lambda stage, done, total: None)
    path = Path(artifact).resolve()
    metadata = read_metadata(path)
    members = load_members(list(checkpoints), model, model_args=model_args, base_dir=base_dir)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ensexport-bench-")))
        tell("prepare", 0, 0)
        paths = _prepare(path, metadata, members, folder, alternatives)
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
            "threads": os.cpu_count() or 1,
            "member_paths": [str(folder / f"member_{k}.onnx") for k in range(len(members))],
        }
        other = "torchscript" if path.suffix == ".onnx" else "onnx"
        kinds = ["packed", "packed again", *alternatives, other]
        workers, left_out = _started(stack, kinds, job, paths, folder)
        timings: dict[int, tuple[Timing, ...]] = {}
        feeds = _feeds(metadata, members, batches)
        for number, (batch, feed) in enumerate(feeds.items()):
            tell("measure", number, len(feeds))
            _compare_first(workers, feed, metadata, folder)
            timings[batch] = tuple(measure(workers, feed, blocks=blocks))
    return BenchReport(timings, _environment(provider), left_out)


def _prepare(
    path: Path, metadata: Mapping[str, Any], members: Members, folder: Path, alternatives: Sequence[str]
) -> dict[str, Path]:
    """Write the files the alternatives need; returns alternative -> its artifact."""
    specs = parse_inputs(metadata["inputs"])
    module = members.build(0)
    model, renamed = member_onnx_model(capture_member(module, specs, find_example(module, specs)), metadata["outputs"])
    for index in range(len(members)):
        state = named_tensors(members.build(index))
        weights = {name: state[source] for name, source in renamed.items() if source in state}
        write_onnx(model, folder / f"member_{index}.onnx", weights, {})
    paths = {"packed": path, "packed again": path}
    options: dict[str, Any] = {
        "inputs": specs,
        "per_member": metadata["per_member"],
        "output_names": metadata["outputs"],
        "batches": (3,),
        "seeds": (0,),
    }
    other = folder / ("packed.ts" if path.suffix == ".onnx" else "packed.onnx")
    export(members, other, **options)
    paths["torchscript" if other.suffix == ".ts" else "onnx"] = other
    if "unrolled" in alternatives:
        export(members, folder / "unrolled.onnx", strategy="unrolled", **options)
        paths["unrolled"] = folder / "unrolled.onnx"
    return paths


def _started(
    stack: ExitStack, kinds: Sequence[str], job: Mapping[str, Any], paths: Mapping[str, Path], folder: Path
) -> tuple[list[Worker], dict[str, str]]:
    """Start one process an alternative; one that cannot run (LSTM under vmap, say) is left out and named."""
    from ensexport.bench.measure import BenchError

    workers: list[Worker] = []
    left_out: dict[str, str] = {}
    for kind in kinds:
        worker = stack.enter_context(Worker({**job, "kind": kind, "path": str(paths.get(kind, ""))}, folder))
        try:
            worker.wait_ready()
        except BenchError as error:
            if kind == "packed":
                raise
            left_out[kind] = error.message
            continue
        workers.append(worker)
    return workers, left_out


def _feeds(metadata: Mapping[str, Any], members: Members, batches: Sequence[int]) -> dict[int, dict[str, Any]]:
    specs = parse_inputs(metadata["inputs"])
    example = find_example(members.build(0), specs)
    probes = make_probes(
        specs,
        metadata["per_member"],
        len(members),
        example_sizes=example.sizes,
        dim_ranges={},
        batches=batches,
        seeds=(0,),
    )
    return {probe.batch or 1: {n: array_from_tensor(t) for n, t in probe.feed.items()} for probe in probes}


def _compare_first(workers: list[Worker], feed: Mapping[str, Any], metadata: Mapping[str, Any], folder: Path) -> None:
    """Refuse to time what does not compute the same."""
    from ensexport.bench.exchange import write_feed

    path = folder / "compare.npz"
    write_feed(path, feed)
    reference = workers[0].outputs(path)
    axis = metadata["member_axis"]
    for worker in workers[1:]:
        for name, value in worker.outputs(path).items():
            expected = reference[name]
            same_form = worker.kind == "packed again" or axis == 0
            expected = expected if same_form else np.moveaxis(expected, axis, 0)
            difference = compare_arrays(expected, value)
            bound = 10 * Tolerance.FLOORS.get(str(value.dtype), 0.0)
            if difference.max_rel > bound:
                raise MismatchError(
                    f"'{worker.kind}' returns another '{name}' than the artifact: max abs diff "
                    f"{difference.max_abs:.3g}, relative {difference.max_rel:.3g} > {bound:.3g}. Nothing was timed.",
                    hint="Run `ensexport validate` on the artifact and these checkpoints.",
                )


def _environment(provider: str) -> dict[str, Any]:
    return {
        "provider": provider,
        "threads": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "onnxruntime": ort.__version__,
        "method": "one process an alternative, interleaved blocks of at least 20 ms, medians of per-block ratios",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
