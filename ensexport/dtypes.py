"""In which dtype a packed file keeps its weights, computes, and takes and returns values: `--dtype`, `--io-dtype`.

Standard library only, so that a misspelt dtype is refused before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ensexport.errors import ArtifactError, UsageError

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class DtypeChoice:
    """What `--dtype` and `--io-dtype` asked for, before the members are known.

    Attributes:
        inside: Dtype of weights and arithmetic; None as the members have it.
        io: Dtype of inputs and outputs; None as the members have it.

    Raises:
        UsageError: One is unknown.
    """

    inside: str | None = None
    io: str | None = None

    def __post_init__(self) -> None:
        for option, value in (("--dtype", self.inside), ("--io-dtype", self.io)):
            if value is not None and value not in DTYPES:
                raise UsageError(f"unknown {option} {value!r}: expected one of {', '.join(DTYPES)}.")

    def resolve(self, members: str) -> Conversion | None:
        """Say what is converted, None where nothing is.

        Args:
            members: Dtype of most of the members' weights.
        """
        if self.inside is None and self.io is None:
            return None
        return Conversion(members, self.inside or members, self.io or members)


AS_THEY_ARE = DtypeChoice()


@dataclass(frozen=True)
class Conversion:
    """What a file does in another dtype than its members.

    Attributes:
        members: Dtype of most of the members' weights; values of other dtypes stay as they are.
        inside: Dtype of the file's weights, of matrix products and convolutions and of what is made of them. Norms,
            softmax and sums are float32 where it has 16 bits.
        io: Dtype of inputs and outputs.
    """

    members: str
    inside: str
    io: str

    def io_dtype(self, dtype: str) -> str:
        """Dtype in the file of an input or output that the members have in `dtype`."""
        return self.io if dtype == self.members else dtype

    @property
    def coarsest(self) -> str:
        """Of the dtypes that values pass through, the one with the fewest bits of mantissa."""
        return min((self.members, self.inside, self.io), key=_BITS.index)

    def describe(self) -> str:
        """One line for the report."""
        return f"{self.inside} inside, {self.io} in and out (the members: {self.members})"

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
            made = cls(**value)
        except TypeError as error:
            raise ArtifactError("cannot read 'dtypes' in the file's ensexport metadata.", hint="Pack again.") from error
        if not {made.members, made.inside, made.io} <= set(_BITS):
            raise ArtifactError(f"the file's ensexport metadata names the dtypes {value!r}.", hint="Pack again.")
        return made


_BITS = ("bfloat16", "float16", "float32", "float64")
"""By bits of mantissa."""
