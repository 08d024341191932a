"""Frozen value types that every stage speaks: inputs, tolerances, artifacts. Standard library only.

They stand at the bottom of the import order so that `ensexport --help` and usage errors never load torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ensexport.errors import InputSpecError, UsageError

DTYPES = (
    "float16", "bfloat16", "float32", "float64",
    "int8", "int16", "int32", "int64", "uint8", "bool",
)  # fmt: skip
FORMAT_BY_SUFFIX = {".onnx": "onnx", ".ts": "torchscript", ".pt2": "pt2"}
SUFFIX_BY_FORMAT = {kind: suffix for suffix, kind in FORMAT_BY_SUFFIX.items()}

_SPEC = re.compile(r"\s*(?P<name>[^\s:\[\]]+)\s*:\s*(?P<dtype>\w+)\s*\[(?P<dims>[^\[\]]*)\]\s*")
_NAME = re.compile(r"[A-Za-z_]\w*")
_SIZE = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one model input.

    Attributes:
        name: A parameter of the model's `forward`, or any name when inputs bind by position.
        dtype: One of `DTYPES`.
        dims: One entry a dimension, as ONE member sees it: an int is fixed, a string names a dynamic
            dimension. Equal names mean equal sizes.

    Raises:
        InputSpecError: A name is no identifier, the dtype is unknown, or a size is below 1.
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(self.dims))
        if not _NAME.fullmatch(self.name):
            raise InputSpecError(
                f"cannot read input {str(self)!r}: {self.name!r} is no name.",
                hint="Use letters, digits and '_', as for a parameter of forward.",
            )
        if self.dtype not in DTYPES:
            raise InputSpecError(
                f"cannot read input {str(self)!r}: unknown dtype {self.dtype!r}.",
                hint=f"Use one of {', '.join(DTYPES)}.",
            )
        for dim in self.dims:
            if not (_NAME.fullmatch(dim) if isinstance(dim, str) else type(dim) is int and dim > 0):
                raise InputSpecError(
                    f"cannot read input {str(self)!r}: dimension {dim!r} is neither a positive integer nor a name.",
                    hint="A fixed size is a number, a dynamic one a name such as 'batch'.",
                )

    @classmethod
    def parse(cls, text: str) -> TensorSpec:
        """Parse `NAME:DTYPE[DIM,...]`, for example `x:float32[batch,1,28,28]`.

        Raises:
            InputSpecError: The text has another form, an unknown dtype, or a size below 1.
        """
        match = _SPEC.fullmatch(text)
        if match is None:
            raise InputSpecError(
                f"cannot read input {text!r}: expected NAME:DTYPE[DIM,...].",
                hint="Write it like 'x:float32[batch,1,28,28]'; a named DIM is dynamic.",
            )
        parts = [part.strip() for part in match["dims"].split(",")] if match["dims"].strip() else []
        return cls(match["name"], match["dtype"], tuple(int(p) if _SIZE.fullmatch(p) else p for p in parts))

    @property
    def dim_names(self) -> tuple[str, ...]:
        """The dynamic dimensions, in order of appearance."""
        return tuple(dict.fromkeys(dim for dim in self.dims if isinstance(dim, str)))

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the concrete shape for one size per dynamic dimension."""
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.dims)

    def __str__(self) -> str:
        return f"{self.name}:{self.dtype}[{','.join(map(str, self.dims))}]"


def parse_inputs(inputs: TensorSpec | str | Iterable[TensorSpec | str]) -> tuple[TensorSpec, ...]:
    """Turn one or several spec texts into `TensorSpec` values and refuse duplicate names.

    Raises:
        InputSpecError: A text cannot be read, no input is given, or a name is used twice.
    """
    specs: list[TensorSpec] = []
    for item in (inputs,) if isinstance(inputs, TensorSpec | str) else inputs:
        if not isinstance(item, TensorSpec | str):
            raise InputSpecError(
                f"cannot read input {type(item).__name__}: expected a string or TensorSpec.",
                hint="Write it like 'x:float32[batch,1,28,28]'; a named DIM is dynamic.",
            )
        spec = TensorSpec.parse(item) if isinstance(item, str) else item
        if any(spec.name == other.name for other in specs):
            raise InputSpecError(f"input {spec.name!r} is given twice.", hint="Give every input once.")
        specs.append(spec)
    if not specs:
        raise InputSpecError(
            "no input is specified.", hint="Add --input 'x:float32[batch,1,28,28]' (a named DIM is dynamic)."
        )
    return tuple(specs)


def dim_names(specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """All dynamic dimensions of several inputs, each once, in order of appearance."""
    return tuple(dict.fromkeys(name for spec in specs for name in spec.dim_names))


def batch_dim(specs: Sequence[TensorSpec]) -> str | None:
    """The dynamic dimension taken as the batch: the first one that leads an input, else None."""
    return next((spec.dims[0] for spec in specs if spec.dims and isinstance(spec.dims[0], str)), None)


def artifact_format(path: str | Path) -> str:
    """Return `onnx`, `torchscript` or `pt2` from the path's suffix.

    Raises:
        UsageError: The suffix is none of `FORMAT_BY_SUFFIX`.
    """
    suffix = Path(path).suffix
    if suffix not in FORMAT_BY_SUFFIX:
        raise UsageError(
            f"cannot tell the format of '{path}': unknown suffix {suffix!r}.",
            hint=f"End the name with one of {', '.join(FORMAT_BY_SUFFIX)}.",
        )
    return FORMAT_BY_SUFFIX[suffix]


@dataclass(frozen=True)
class Tolerance:
    """How far an artifact may be from the float64 loop, as a share of the largest reference value.

    The default bound is `max(4 * error of the loop in its own dtype, floor)`: an artifact may round as
    the members themselves do, and no more. `atol` or `rtol`, when given, replace it by
    `atol + rtol * max|reference|`.

    Attributes:
        atol: Absolute part, in units of the output; None means not given.
        rtol: Relative part; None means not given.

    Raises:
        UsageError: A part is negative, infinite or not a number: nothing would be proven then.
    """

    atol: float | None = None
    rtol: float | None = None

    FLOORS: ClassVar[dict[str, float]] = {
        "float16": 2e-3,
        "bfloat16": 2e-2,
        "float32": 1e-5,
        "float64": 1e-10,  # ONNX holds attributes such as a norm's epsilon in float32
    }

    def __post_init__(self) -> None:
        for name, value in (("atol", self.atol), ("rtol", self.rtol)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} is {value}: expected a finite number, 0 or more.")

    def bound(self, *, dtype: str, scale: float, loop_error: float) -> float:
        """Return the allowed `max|y - reference| / scale`.

        Args:
            dtype: Dtype the members compute in.
            scale: `max|reference|`, or 1 when the reference is all zero.
            loop_error: The loop's own `max|y - reference| / scale`.
        """
        if self.atol is None and self.rtol is None:
            return max(4 * loop_error, self.FLOORS.get(dtype, 0.0))
        return (self.atol or 0.0) / scale + (self.rtol or 0.0)


@dataclass(frozen=True)
class Artifact:
    """One exported file: where it is, what it is, and the digest that identifies it."""

    path: str
    format: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Check:
    """One output of one member compared at one batch size, on one artifact and provider.

    Attributes:
        artifact: Path of the artifact, as the user gave it.
        provider: Execution provider, or `torch-cpu` and `torch-cuda` for torch's own formats.
        batch: Size of the batch dimension; None when no dimension is dynamic.
        member_index: The member compared; None for an output that combines all.
        output: Name of the output.
        max_abs: Largest absolute difference to the float64 loop.
        max_rel: `max_abs` divided by the largest reference value.
        bound: What `max_rel` may be.
        passed: `max_rel <= bound`, the NaN and Inf positions agree, and so do dtype and shape.
        index: Where the largest difference is, within the member's output.
        expected: The reference value there.
        actual: The artifact's value there.
        dtype: The members' dtype of this output.
        optimization: ONNX Runtime's graph optimisation level, empty elsewhere.
        seed: Seed of the random inputs.
        problem: What differs before any value does, such as `dtype float16 is expected, float32 came`; else empty.
        note: Why integers that differ passed: the member's own do, when its weights change by rounding. Or that the
            members drop dims of size 1 at batch 1. Else empty.
        top1_inputs: Where the output is taken for class scores, the number of inputs (or pixels, or tokens); else 0.
        top1_differs: How many of them have another largest class than in the loop.
    """

    artifact: str
    provider: str
    batch: int | None
    member_index: int | None
    output: str
    max_abs: float
    max_rel: float
    bound: float
    passed: bool
    index: tuple[int, ...] = ()
    expected: float | int = 0.0
    actual: float | int = 0.0
    dtype: str = ""
    optimization: str = ""
    seed: int = 0
    problem: str = ""
    note: str = ""
    top1_inputs: int = 0
    top1_differs: int = 0


@dataclass(frozen=True)
class Fallback:
    """One step down the ladder: which op, from which source line, to which step."""

    op: str
    source: str
    step: str


@dataclass(frozen=True)
class Stage:
    """Layers in a row that have the same form.

    Attributes:
        form: `batched`: one node for all members. `apart`: one node a member.
        layers: How many: convolutions, linear layers and products of activations.
        first: Op and source line of the first one.
    """

    form: str
    layers: int
    first: str


@dataclass(frozen=True)
class Trial:
    """One candidate of `--strategy tune` at one batch size.

    Attributes:
        candidate: Its name.
        batch: Batch size; None where the file has no dynamic batch.
        median_ms: Median time of one call.
        ratio: Median over the rounds of (its time / the first candidate's time in the same round).
        ratio_low: Lower end of the 95 % bootstrap interval of `ratio`.
        ratio_high: Upper end.
    """

    candidate: str
    batch: int | None
    median_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class Plan:
    """How the batched graph was made.

    Attributes:
        strategy: What became of it: `auto` and `stacked` batch, `unrolled` has N branches.
        fallbacks: Ops that went down the ladder.
        target: The rule set.
        stages: Which layers are batched and which run once a member, in order; empty if unrolled.
        winner: The candidate that `--strategy tune` kept.
        trials: What it measured.
    """

    strategy: str
    fallbacks: tuple[Fallback, ...] = ()
    target: str = "portable"
    stages: tuple[Stage, ...] = ()
    winner: str | None = None
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True)
class ValidationReport:
    """All checks made on a set of artifacts.

    Attributes:
        checks: One an output, member, probe and artifact.
        integer_inputs: Input -> smallest and largest integer it was tried with; None where that depends on another
            input's size.
        members: The members that were compared, where the user chose some; None for all.
    """

    checks: tuple[Check, ...]
    integer_inputs: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    members: tuple[int, ...] | None = None

    @property
    def passed(self) -> bool:
        """True if there was at least one check and none failed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def worst(self) -> Check:
        """The check that uses up most of its bound; a failed one comes first, one that passed with a note last.

        Raises:
            ValueError: There are no checks.
        """
        return max(self.checks, key=_severity)

    @property
    def top1(self) -> dict[str, tuple[int, int]]:
        """Output of class scores -> how many inputs have another largest class than in the loop, and of how many.

        Over all members, probes, files and providers. No bound is set on it: a near tie may fall either way.
        """
        counts: dict[str, tuple[int, int]] = {}
        for check in self.checks:
            if check.top1_inputs:
                differs, inputs = counts.get(check.output, (0, 0))
                counts[check.output] = differs + check.top1_differs, inputs + check.top1_inputs
        return counts

    def to_dict(self) -> dict[str, Any]:
        """Return the `validation` object of the JSON contract; see `json_number` for NaN and Inf.

        Without any check, `tolerance` and `max_error` are null; `passed` is too if none was asked for.
        """
        names = ("artifact", "provider", "batch", "member_index", "output", "max_abs", "max_rel", "passed",
                 "bound", "optimization", "seed", "problem", "note", "top1_inputs", "top1_differs")  # fmt: skip
        worst = self.worst if self.checks else None
        return {
            "passed": None if self.members == () else self.passed,
            "members": "all" if self.members is None else list(self.members),
            "tolerance": None if worst is None else json_number(worst.bound),
            "max_error": None if worst is None else json_number(worst.max_rel),
            "integer_inputs": {name: list(bounds) for name, bounds in self.integer_inputs.items()},
            "top1": {
                name: {"differs": differs, "inputs": inputs, "share": differs / inputs}
                for name, (differs, inputs) in self.top1.items()
            },
            "checks": [{name: json_number(getattr(check, name)) for name in names} for check in self.checks],
        }


def _severity(check: Check) -> tuple[bool, bool, float]:
    return not check.passed, not check.note, check.max_rel / (check.bound or 1e-300)


def json_number(value: Any) -> Any:
    """Return `value` as JSON can hold it: NaN and Inf become `"NaN"`, `"Infinity"` or `"-Infinity"`.

    JSON has no such numbers, and Python's `json` would write text that other parsers refuse. Everything else is
    returned as it is.

    Source: the same three strings as in the JSON form of Protocol Buffers
    (https://protobuf.dev/programming-guides/json/).
    """
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


@dataclass(frozen=True)
class SkippedFile:
    """A file that was seen and not taken, and why."""

    path: str
    reason: str
