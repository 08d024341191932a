"""What each output of the file becomes: the names that `--emit` takes, their formulas, and reading them.

The table is the one place where the formulas stand: the help, the file's metadata and the errors quote it. Standard
library only, so that a misspelt name is refused before torch is loaded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ensexport.errors import ArtifactError, UsageError


@dataclass(frozen=True)
class Quantity:
    """One thing that an output can become.

    Attributes:
        formula: How it is made of the members' outputs y_k, with weights w_k that sum to 1 (1/N unless given); p_k is
            the softmax of y_k over the class axis.
        shape: Its shape where one member's output is `(B, C)`.
        needs_classes: Does it need a class axis?
    """

    formula: str
    shape: str
    needs_classes: bool = False


MEMBERS = "members"
QUANTITIES: Mapping[str, Quantity] = {
    MEMBERS: Quantity("y_k", "(N, B, C)"),
    "mean": Quantity("sum_k w_k y_k", "(B, C)"),
    "var": Quantity("sum_k w_k (y_k - mean)^2 (population variance, ddof 0)", "(B, C)"),
    "std": Quantity("sqrt(var)", "(B, C)"),
    "min": Quantity("min of y_k over k with w_k > 0", "(B, C)"),
    "max": Quantity("max of y_k over k with w_k > 0", "(B, C)"),
    "median": Quantity(
        "(lower + upper) / 2: the smallest y_k up to which the weights sum to at least 1/2, and to more than 1/2",
        "(B, C)",
    ),
    "probs": Quantity("p = sum_k w_k p_k", "(B, C)", needs_classes=True),
    "logprobs": Quantity("log p", "(B, C)", needs_classes=True),
    "vote": Quantity(
        "sum of w_k over the members whose largest y_k is the class (the first of equal ones)",
        "(B, C)",
        needs_classes=True,
    ),
    "entropy": Quantity("H = -sum_c p_c log p_c, in nats", "(B,)", needs_classes=True),
    "expected_entropy": Quantity("E = -sum_k w_k sum_c p_kc log p_kc, in nats", "(B,)", needs_classes=True),
    "mutual_information": Quantity("H - E, never negative, in nats", "(B,)", needs_classes=True),
}

CLASS_NAMES = frozenset(name for name, quantity in QUANTITIES.items() if quantity.needs_classes)
"""The names that take an output for class scores."""
QUANTILE = Quantity(
    "(1 - t) lower + t upper: the sorted y_k on both sides of place NN (N - 1) / 100, t beyond the lower one", "(B, C)"
)
"""`q1` to `q99`: what NumPy's and torch's quantile return by default. Not defined for weights."""
QUANTILE_NAMES = "q1 to q99"
_QUANTILE = re.compile(r"q([1-9][0-9]?)")

_AXIS = re.compile(r"-?[0-9]{1,3}")


def percent_of(name: str) -> int | None:
    """`q10` -> 10; None for a name that is no quantile."""
    match = _QUANTILE.fullmatch(name)
    return None if match is None else int(match[1])


def quantity(name: str) -> Quantity | None:
    """What a name means; None for one that means nothing."""
    return QUANTITIES.get(name) if percent_of(name) is None else QUANTILE


@dataclass(frozen=True)
class OutputEmission:
    """What one output of the model becomes.

    Attributes:
        output: The output's name.
        names: Names out of `QUANTITIES`, or quantiles (`q10`), in the file's order.
        class_axis: The axis of one member's output that holds the classes.
    """

    output: str
    names: tuple[str, ...] = (MEMBERS,)
    class_axis: int = -1

    @property
    def file_names(self) -> tuple[str, ...]:
        """What the file calls them: `y` for `members`, `y.NAME` for the rest."""
        return tuple(self.output if name == MEMBERS else f"{self.output}.{name}" for name in self.names)

    @property
    def combined(self) -> tuple[tuple[str, str], ...]:
        """Name and file name of each that is no `members`."""
        return tuple(pair for pair in zip(self.names, self.file_names, strict=True) if pair[0] != MEMBERS)

    @property
    def needs_classes(self) -> bool:
        """Is anything made of it that takes it for class scores?"""
        return any(name in CLASS_NAMES for name in self.names)

    @property
    def is_hidden(self) -> bool:
        """Are the members themselves not among the file's outputs?"""
        return MEMBERS not in self.names


@dataclass(frozen=True)
class Emission:
    """What `--emit` and `--class-axis` asked for, before the model's outputs are known.

    Attributes:
        names: What an output becomes that is not named.
        by_output: Output name -> what it becomes.
        class_axis: The class axis of an output that is not named.
        class_axes: Output name -> its class axis.
    """

    names: tuple[str, ...] = (MEMBERS,)
    by_output: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    class_axis: int = -1
    class_axes: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_combined(self) -> bool:
        """Is anything but `members` asked for?"""
        return any(name != MEMBERS for names in (self.names, *self.by_output.values()) for name in names)

    def resolve(self, outputs: Sequence[str]) -> tuple[OutputEmission, ...]:
        """Say what each output of the model becomes.

        Args:
            outputs: Their names, in order.

        Raises:
            UsageError: An output that is named is none of them, or two outputs of the file would share a name.
        """
        for option, named in (("--emit", self.by_output), ("--class-axis", self.class_axes)):
            for name in named:
                if name not in outputs:
                    raise UsageError(
                        f"{option} names the output '{name}': expected one of {', '.join(outputs)}.",
                        hint=f"Write {option} {outputs[0]}={'LIST' if option == '--emit' else 'AXIS'}.",
                    )
        emitted = tuple(
            OutputEmission(name, self.by_output.get(name, self.names), self.class_axes.get(name, self.class_axis))
            for name in outputs
        )
        # A name stays taken where the members themselves are not emitted: the check reads them under it.
        names = [name for entry in emitted for name in {*entry.file_names, entry.output}]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(
                f"two outputs of the file would be called '{twice}'.", hint="Rename the outputs: --output-names."
            )
        return emitted


ALL_MEMBERS_ONLY = Emission()


def parse_emission(emit: str | Iterable[str] = (), class_axis: str | int | Iterable[str | int] = ()) -> Emission:
    """Read `--emit` and `--class-axis`.

    Args:
        emit: `probs,entropy` for every output, `logits=probs,entropy` for one; one text or several.
        class_axis: `1` for every output, `logits=1` for one; one or several.

    Raises:
        UsageError: A name is unknown, given twice or empty, or an axis is no integer.
    """
    names: list[str] = []
    by_output: dict[str, tuple[str, ...]] = {}
    for text in (emit,) if isinstance(emit, str) else emit:
        output, equals, listed = text.rpartition("=")
        wanted = [part.strip() for part in listed.split(",")]
        for name in wanted:
            _check_name(name, text)
        if not equals:
            names += wanted
        elif by_output.setdefault(output.strip(), tuple(dict.fromkeys(wanted))) != tuple(dict.fromkeys(wanted)):
            raise UsageError(f"--emit says twice what the output '{output.strip()}' becomes.", hint="Say it once.")
    axis, axes = _parse_axes((class_axis,) if isinstance(class_axis, str | int) else class_axis)
    return Emission(tuple(dict.fromkeys(names)) or (MEMBERS,), by_output, axis, axes)


def _check_name(name: str, text: str) -> None:
    if quantity(name) is not None:
        return
    close = difflib.get_close_matches(name, QUANTITIES, 1)
    raise UsageError(
        f"unknown name {name!r} in --emit {text!r}: expected names out of {', '.join(QUANTITIES)}, {QUANTILE_NAMES}.",
        hint=f"Did you mean '{close[0]}'?" if close else "Write --emit probs,entropy, or --emit OUTPUT=probs for one.",
    )


def _parse_axes(given: Iterable[str | int]) -> tuple[int, dict[str, int]]:
    general, axes = -1, {}
    for item in given:
        output, equals, axis = str(item).rpartition("=")
        if not _AXIS.fullmatch(axis.strip()):
            raise UsageError(
                f"cannot read --class-axis {str(item)!r}: expected an axis of one member's output, such as -1 or 1.",
                hint="Write --class-axis 1, or OUTPUT=1 for one of several outputs.",
            )
        if equals:
            axes[output.strip()] = int(axis)
        else:
            general = int(axis)
    return general, axes


def help_text() -> str:
    """The names and their formulas as the help shows them, a line each."""
    width = max(map(len, QUANTITIES))
    table = {**QUANTITIES, QUANTILE_NAMES: QUANTILE}
    lines = [f"  {name:<{width}}  {quantity.formula}" for name, quantity in table.items()]
    return "\n".join(lines)


def names_of(emitted: Iterable[OutputEmission]) -> tuple[str, ...]:
    """Names of the file's outputs, in order."""
    return tuple(name for entry in emitted for name in entry.file_names)


def hidden_of(emitted: Iterable[OutputEmission]) -> tuple[str, ...]:
    """Names of the members' outputs that the file holds and does not return."""
    return tuple(entry.output for entry in emitted if entry.is_hidden)


def formulas(emitted: Iterable[OutputEmission]) -> dict[str, str]:
    """File name -> formula, for the file's metadata."""
    return {
        file_name: meaning.formula.replace("NN", name[1:]) if meaning is QUANTILE else meaning.formula
        for entry in emitted
        for name, file_name in zip(entry.names, entry.file_names, strict=True)
        if (meaning := quantity(name)) is not None
    }


def to_json(emitted: Iterable[OutputEmission]) -> list[dict[str, object]]:
    """What the file's metadata says of its outputs."""
    return [{"output": entry.output, "names": list(entry.names), "class_axis": entry.class_axis} for entry in emitted]


def from_json(emit: object, outputs: Sequence[str]) -> tuple[OutputEmission, ...]:
    """Read what a file's metadata says of its outputs.

    Args:
        emit: The inverse of `to_json`; a file that says nothing, or `["members"]`, returns the members.
        outputs: Names of the file's outputs.

    Raises:
        ArtifactError: It has another form, or names other outputs.
    """
    if emit in (None, [MEMBERS]):
        return tuple(OutputEmission(name) for name in outputs)
    try:
        entries = [emit] if isinstance(emit, dict) else list(emit)  # type: ignore[call-overload]
        emitted = tuple(
            OutputEmission(str(entry["output"]), tuple(entry["names"]), int(entry["class_axis"])) for entry in entries
        )
        unknown = [name for entry in emitted for name in entry.names if quantity(name) is None]
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError("cannot read 'emit' in the file's ensexport metadata.", hint="Pack again.") from error
    if unknown or [name for entry in emitted for name in entry.file_names] != list(outputs):
        raise ArtifactError(
            f"the file's ensexport metadata says of its outputs {', '.join(outputs)} that they are {emit!r}.",
            hint="Give a file that ensexport packed.",
        )
    return emitted
