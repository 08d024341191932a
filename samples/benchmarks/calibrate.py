"""Time the forms that one layer of N members can take against N separate nodes, and write the table as JSON.

    python calibrate.py --quick -o calibration_cpu.json
    python calibrate.py --threads 1 -o calibration_cpu_1.json
    python calibrate.py --provider cuda -o calibration_cuda.json

The outputs of all forms are compared first. Then they are timed in interleaved blocks; a ratio is the median over the
blocks of (form's time / time of `unrolled` in the same round), with a 95 % bootstrap interval; `fastest_us` is of the
fastest block. On a machine that has other work to do, threads wait for each other: `--threads 1` takes the processor
time of that one thread, which stands still while other work has the core.

All sessions of the process share one pool of threads that spins between calls, as a user's session does by default.
With pools of their own the idle threads of one session would take the cores from the next; with spinning off every node
would pay for waking threads, which no user pays and which weighs on N nodes more than on one. Inputs and outputs are
bound once and lie on the device. On CUDA every form is also tried as a captured CUDA graph: rows with `cuda_graph` true
are the time of a replay. A row with `error` instead of times says what cannot be run or captured.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
from forms import Conv, Form, LayerNorm, Linear, Problem
from onnx import TensorProto

from ensexport.compare import compare_arrays
from ensexport.runtime.onnx_runner import PROVIDERS
from ensexport.timing.measure import summarise

CHANNELS = (4, 6, 8, 12, 16, 20, 24, 32, 36, 48, 64, 96, 128, 256, 512)
SIZES = (7, 14, 28, 56, 112)
FEATURES = (64, 128, 256, 768, 3072)
MAX_FLOPS = {"cpu": 2e9, "cuda": 1e12}
MAX_WEIGHTS = 1 << 27  # of one form, in elements
BLOCK_S = 0.005
# Of the largest value. Convolutions and products in float32 are TF32 on CUDA, as ONNX Runtime sets it by default.
BOUNDS = {"float32": {"cpu": 1e-4, "cuda": 1e-2}, "float16": {"cpu": 2e-2, "cuda": 2e-2},
          "bfloat16": {"cpu": 1e-1, "cuda": 1e-1}}  # fmt: skip

Run = Callable[[], None]
Clock = Callable[[], float]


# -- the grid --------------------------------------------------------------------------------------


def grid(provider: str, *, quick: bool) -> Iterator[Problem]:
    """All layers to time, those that matter most first."""
    counts = (5,) if quick else (5, 10)
    batches = (1, 8) if provider == "cpu" else (1, 8, 32)
    for n_members in counts:
        for problem in (*_convs(n_members, batches, quick), *_linears(n_members, quick), *_norms(n_members, quick)):
            if problem.flops <= MAX_FLOPS[provider]:
                yield problem


def _convs(n_members: int, batches: tuple[int, ...], quick: bool) -> Iterator[Problem]:
    channels = (4, 8, 12, 16, 20, 24, 32, 64, 128, 256, 512) if quick else CHANNELS
    for layers in (1, 3):
        for kernel, is_depthwise in ((3, False), (1, False), (3, True)):
            for count in channels:
                for size in _typical(_sizes(count)) if quick else _sizes(count):
                    for batch in batches[:2] if quick else batches:
                        yield Conv(count, count, kernel, is_depthwise, size, batch, n_members, layers)


def _sizes(channels: int) -> list[int]:
    """Sizes at which networks have so many channels: a stage halves the one and doubles the other."""
    return [size for size in SIZES if 400 <= channels * size <= 8000 or (channels < 16 and size >= 28)]


def _typical(sizes: list[int]) -> list[int]:
    return sizes[(len(sizes) - 1) // 2 :][:1]


def _linears(n_members: int, quick: bool) -> Iterator[Problem]:
    pairs = [(k, o) for k in FEATURES for o in FEATURES]
    if quick:
        pairs = [(64, 64), (256, 256), (768, 768), (768, 3072), (3072, 768)]
    for is_shared in (False, True):
        for rows in (1, 8, 64, 200) if quick else (1, 8, 64, 128, 200):
            for k, o in pairs:
                if k * o * n_members <= MAX_WEIGHTS:
                    yield Linear(rows, k, o, n_members, is_shared)


def _norms(n_members: int, quick: bool) -> Iterator[Problem]:
    for rows in (1, 200) if quick else (1, 8, 64, 200, 1600):
        for features in (64, 768) if quick else FEATURES[:-1]:
            yield LayerNorm(rows, features, n_members)


# -- running ---------------------------------------------------------------------------------------


@dataclass
class Contestant:
    """A form that is loaded, with its buffers bound."""

    form: Form
    session: ort.InferenceSession
    binding: Any
    outputs: list[ort.OrtValue]

    def run(self) -> None:
        """Run it once."""
        self.session.run_with_iobinding(self.binding)

    def values(self) -> np.ndarray:
        """Outputs of the last run, as `(N, ...)`."""
        return self.form.to_members([_array(value) for value in self.outputs])


def load(form: Form, provider: str, like: Contestant | None = None) -> Contestant:
    """Load a form and bind its buffers; with `like`, the same form loaded before, as a captured CUDA graph."""
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 4 if like else 3
    wanted = (PROVIDERS[provider], {"enable_cuda_graph": "1"}) if like else PROVIDERS[provider]
    session = ort.InferenceSession(form.model.SerializeToString(), options, providers=[wanted])
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise SystemExit(f"{PROVIDERS[provider]} is not there: ONNX Runtime fell back to {session.get_providers()[0]}.")
    binding = session.io_binding()
    for name, array in form.feed.items():
        binding.bind_ortvalue_input(name, _ort_value(array))  # copied to the device here, once
    names = [output.name for output in session.get_outputs()]
    if like is None:
        for name in names:
            binding.bind_output(name, provider)
        session.run_with_iobinding(binding)
        outputs = list(binding.get_outputs())
    else:
        make = ort.OrtValue.ortvalue_from_shape_and_type
        outputs = [make(value.shape(), value.element_type(), provider, 0) for value in like.outputs]
    for name, value in zip(names, outputs, strict=True):
        binding.bind_ortvalue_output(name, value)
    contestant = Contestant(form, session, binding, outputs)
    for _ in range(3):  # a graph is captured in the first ones
        contestant.run()
    return contestant


def _ort_value(array: np.ndarray) -> ort.OrtValue:
    if array.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _array(value: ort.OrtValue) -> np.ndarray:
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    from torch.utils.dlpack import from_dlpack

    return from_dlpack(value._ortvalue.to_dlpack()).float().cpu().numpy()


def check_same(contestants: list[Contestant], bound: float) -> None:
    """Refuse to time forms that do not compute the same as the first."""
    expected = contestants[0].values()
    for contestant in contestants[1:]:
        difference = compare_arrays(expected, contestant.values())
        if not difference.max_rel <= bound:
            name = contestant.form.name
            raise SystemExit(
                f"'{name}' computes something else: {difference.max_rel:.2g} > {bound:g}. Nothing written."
            )


def time_rounds(runs: list[Run], rounds: int, clock: Clock) -> list[np.ndarray]:
    """Seconds a call, one entry a round, of each of the runs."""
    repeats = [_repeats(run, clock) for run in runs]
    times: list[list[float]] = [[] for _ in runs]
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for index in order.permutation(len(runs)):
            run, count = runs[index], repeats[index]
            for _ in range(1 + count // 10):
                run()
            begin = clock()
            for _ in range(count):
                run()
            times[index].append((clock() - begin) / count)
    return [np.array(own) for own in times]


def _repeats(run: Run, clock: Clock) -> int:
    """How many calls fill a block."""
    fastest = float("inf")
    for _ in range(5):
        begin = clock()
        run()
        fastest = min(fastest, clock() - begin)
    return max(1, round(BLOCK_S / fastest))


def rows_of(
    problem: Problem, provider: str, dtype: str, rounds: int, clock: Clock = time.perf_counter
) -> list[dict[str, Any]]:
    """Compare and time the forms of one layer."""
    tried = {form.name: _tried(form, provider) for form in problem.forms(dtype)}
    rows = _timed(problem, provider, dtype, tried, rounds, clock, cuda_graph=False)
    if provider == "cuda":
        plain = [contestant for contestant in tried.values() if isinstance(contestant, Contestant)]
        graphs = {contestant.form.name: _tried(contestant.form, provider, contestant) for contestant in plain}
        rows += _timed(problem, provider, dtype, graphs, rounds, clock, cuda_graph=True)
    return rows


def _tried(form: Form, provider: str, like: Contestant | None = None) -> Contestant | str:
    """The form, loaded, or why that fails: a provider may lack a dtype, or not be able to capture."""
    try:
        return load(form, provider, like)
    except Exception as error:  # noqa: BLE001 - whether this fails is the question
        return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"


def _timed(
    problem: Problem,
    provider: str,
    dtype: str,
    tried: dict[str, Contestant | str],
    rounds: int,
    clock: Clock,
    *,
    cuda_graph: bool,
) -> list[dict[str, Any]]:
    def row(form: str, **found: Any) -> dict[str, Any]:
        key = problem.key()
        return {"op": key.pop("op"), "form": form, **key, "dtype": dtype, "cuda_graph": cuda_graph, **found}

    rows = [row(form, error=error) for form, error in tried.items() if isinstance(error, str)]
    contestants = [contestant for contestant in tried.values() if isinstance(contestant, Contestant)]
    if not isinstance(tried.get("unrolled"), Contestant):
        return rows  # nothing to be compared with
    check_same(contestants, problem.layers * BOUNDS[dtype][provider])
    times = time_rounds([contestant.run for contestant in contestants], rounds, clock)
    for contestant, own in zip(contestants, times, strict=True):
        timing = summarise(contestant.form.name, own, times[0])
        found = {
            "us": float(f"{timing.median_ms * 1e3:.4g}"),
            "fastest_us": float(f"{own.min() * 1e6:.4g}"),
            "ratio_to_unrolled": round(timing.ratio, 4),
            "low": round(timing.ratio_low, 4),
            "high": round(timing.ratio_high, 4),
        }
        rows.append(row(contestant.form.name, **found))
    return rows


# -- the command -----------------------------------------------------------------------------------


def environment(provider: str, threads: int, rounds: int, clock: Clock) -> dict[str, Any]:
    """What the numbers depend on."""
    facts = {
        "provider": provider,
        "threads": threads,
        "clock": clock.__name__,
        "processor": _processor(),
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "method": f"{rounds} interleaved rounds of {BLOCK_S * 1e3:.0f} ms blocks, one pool of threads, io-binding",
    }
    if provider == "cuda":
        import torch

        facts |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return facts


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", action="append", choices=tuple(BOUNDS), help="default: float32, on cuda all three")
    parser.add_argument("--quick", action="store_true", help="a part of the grid, about five minutes on two cores")
    parser.add_argument("--op", action="append", help="conv, linear, linear_shared or layer_norm; default: all")
    parser.add_argument("--rounds", type=int, help="default: 30, quick 15")
    parser.add_argument("--threads", type=int, default=_n_cores(), help="default: the cores of this machine")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="start no layer after so many seconds")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    if options.provider == "cuda":
        ort.preload_dlls()
    ort.set_global_thread_pool_sizes(options.threads, 1)
    clock = time.thread_time if (options.provider, options.threads) == ("cpu", 1) else time.perf_counter
    dtypes = options.dtype or (["float32"] if options.provider == "cpu" else list(BOUNDS))
    rounds = options.rounds or (15 if options.quick else 30)
    todo = [
        (problem, dtype)
        for problem in grid(options.provider, quick=options.quick)
        for dtype in dtypes
        if not options.op or problem.key()["op"] in options.op
    ]
    rows: list[dict[str, Any]] = []
    begin = written = time.perf_counter()
    done = 0
    facts = environment(options.provider, options.threads, rounds, clock)
    for problem, dtype in todo:
        if time.perf_counter() - begin > options.limit_s:
            break
        print(f"{done + 1}/{len(todo)} {dtype} {problem}", file=sys.stderr)
        rows += rows_of(problem, options.provider, dtype, rounds, clock)
        done += 1
        if time.perf_counter() - written > 60:  # a provider may take the process down
            write(options.output, facts, len(todo) - done, rows)
            written = time.perf_counter()
    write(options.output, facts, len(todo) - done, rows)
    spent = time.perf_counter() - begin
    print(f"{len(rows)} rows in {spent:.0f} s, {len(todo) - done} layers left out: {options.output}")


def write(path: Path, facts: dict[str, Any], left_out: int, rows: list[dict[str, Any]]) -> None:
    """Write the table, one row a line."""
    head = json.dumps({"environment": facts, "left_out": left_out}, indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n')


if __name__ == "__main__":
    main()
