"""In which dtype a packed file keeps its weights, computes, and takes and returns values: `--dtype`, `--io-dtype`.

Standard library only, so that a misspelt dtype is refused before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ensexport.errors import ArtifactError, UsageError

DTYPES = ("float32", "float16", "bfloat16")
_LARGEST = {"float16": 65504.0, "bfloat16": 3.39e38, "float32": 3.40e38}


@dataclass(frozen=True)
class DtypeChoice:
    """What `--dtype` and `--io-dtype` asked for, before the members are known.

    Attributes:
        weights: Dtype of weights and arithmetic; None as the members have it.
        io: Dtype of inputs and outputs; None as the members have it.
    """

    weights: str | None = None
    io: str | None = None

    def __post_init__(self) -> None:
        for option, value in (("--dtype", self.weights), ("--io-dtype", self.io)):
            if value is not None and value not in DTYPES:
                raise UsageError(f"unknown {option} {value!r}: expected one of {', '.join(DTYPES)}.")

    def resolve(self, members: str, *, has_kernels: bool) -> Conversion | None:
        """Say what is converted.

        Args:
            members: Dtype of most of the members' weights.
            has_kernels: Does every runtime that the files are checked with compute in bfloat16?

        Returns:
            None where nothing is.
        """
        if self.weights is None and self.io is None:
            return None
        weights = self.weights or members
        compute = "float32" if self.weights == "bfloat16" and not has_kernels else weights
        return Conversion(members, weights, compute, self.io or members)


AS_THEY_ARE = DtypeChoice()


@dataclass(frozen=True)
class Conversion:
    """What a file does in another dtype than its members.

    Attributes:
        members: Dtype of the members' weights; values of other dtypes stay as they are.
        weights: Dtype of the file's weights.
        compute: Dtype of matrix products and convolutions, and of what is made of them. Norms, softmax and sums are
            float32 where it has 16 bits.
        io: Dtype of inputs and outputs.
    """

    members: str
    weights: str
    compute: str
    io: str

    def io_dtype(self, dtype: str) -> str:
        """Dtype of an input or output that the members have in `dtype`."""
        return self.io if dtype == self.members else dtype

    @property
    def coarsest(self) -> str:
        """Of the dtypes that values pass through, the one with the fewest bits of mantissa."""
        order = ("bfloat16", "float16", "float32", "float64")
        return min((self.members, self.weights, self.compute, self.io), key=order.index)

    def describe(self) -> str:
        """One line for the report."""
        stored = "" if self.weights == self.compute else f"{self.weights} weights, "
        return f"{stored}{self.compute} inside, {self.io} in and out (the members: {self.members})"

    def to_json(self) -> dict[str, str]:
        """What the report and the file's metadata say."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, str] | None) -> Conversion | None:
        """The inverse of `to_json`; None for a file that converts nothing.

        Raises:
            ArtifactError: It has another form.
        """
        if value is None:
            return None
        try:
            return cls(**value)
        except TypeError as error:
            raise ArtifactError("cannot read 'dtypes' in the file's ensexport metadata.", hint="Pack again.") from error


def largest(dtype: str) -> float:
    """The largest finite number of a dtype, rounded to what an error shows."""
    return _LARGEST[dtype]
