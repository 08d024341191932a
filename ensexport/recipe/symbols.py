"""Dynamic sizes made anew: a graph that was read from a file gets the symbols that `torch.export` gives a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from ensexport.batching.capturing import capturing
from ensexport.errors import ArtifactError
from ensexport.spec import TensorSpec, dim_names

Ranges = Mapping[str, tuple[int, int | None]]

_MAX_SIZE = 2**31


class _Copies(nn.Module):
    """Returns its inputs: they have the dynamic dims, and nothing else is needed."""

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors)


def symbolic_program(specs: Sequence[TensorSpec], sizes: Mapping[str, int], ranges: Ranges) -> ExportedProgram:
    """Return a program whose inputs are those of `specs`, with a symbol for each dynamic dim.

    Args:
        specs: The inputs.
        sizes: An example size of each dynamic dim.
        ranges: Dynamic dim -> smallest and largest size (None = no end).

    Raises:
        ArtifactError: The sizes do not fit the inputs.
    """
    dims = {}
    for name in dim_names(specs):
        low, high = ranges.get(name, (1, None))
        dims[name] = Dim(name, min=max(low, 1)) if high is None else Dim(name, min=max(low, 1), max=high)
    if not all(type(size) is int and 0 < size < _MAX_SIZE for size in sizes.values()):
        raise ArtifactError(f"cannot read the file's recipe: {str(dict(sizes))[:80]} are no sizes.", hint="Pack again.")
    try:
        tensors = tuple(torch.zeros(spec.shape(dict(sizes)), dtype=getattr(torch, spec.dtype)) for spec in specs)
        shapes = tuple({dim: dims[n] for dim, n in enumerate(spec.dims) if isinstance(n, str)} for spec in specs)
        module = _Copies()
        with capturing(module):
            return torch.export.export(module, tensors, dynamic_shapes=(shapes,), strict=False)
    except (KeyError, ValueError, RuntimeError, torch._dynamo.exc.UserError) as error:
        raise ArtifactError(
            f"cannot read the file's recipe: its inputs {', '.join(map(str, specs))} and the sizes {dict(sizes)} do "
            "not fit.",
            hint="Pack again.",
        ) from error
