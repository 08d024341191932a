"""Is what is timed the same? Outputs are compared before any clock runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ensexport.compare import Array, compare_arrays, is_exact
from ensexport.errors import MismatchError
from ensexport.spec import Tolerance


def check_same(
    kind: str,
    expected: Mapping[str, Array],
    outputs: Mapping[str, Array],
    of_members: Sequence[str],
    *,
    tf32: bool,
    coarsest: str | None = None,
) -> None:
    """Compare at ten times the floor of the proof: two roundings may lie on different sides of the truth.

    Args:
        kind: The alternative.
        expected: Output -> what it should be.
        outputs: What the alternative returned.
        of_members: Names of the outputs that are `(N, B, ...)`.
        coarsest: The dtype that the artifact rounds to, where that is not its outputs'.
        tf32: Were float32 products computed in TF32?

    Raises:
        MismatchError: They differ; names the output and, where there is one, the member.
    """
    floors = Tolerance.FLOORS | ({"float32": Tolerance.FLOORS["float16"]} if tf32 else {})  # as long a mantissa
    for name, reference in expected.items():
        difference = compare_arrays(reference, outputs[name])
        exact = is_exact(reference.dtype)
        bound = 0.0 if exact else 10 * floors.get(coarsest or str(reference.dtype), 0.0)
        if difference.max_rel > bound:
            where = f" at member {difference.index[0]}" if difference.index and name in of_members else ""
            raise MismatchError(
                f"'{kind}' returns another '{name}' than the artifact{where}: max abs diff {difference.max_abs:.3g}, "
                f"relative {difference.max_rel:.3g} > {bound:.3g}. Nothing was timed.",
                hint="Run `ensexport validate` on the artifact and these checkpoints.",
            )
