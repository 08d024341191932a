"""Whether Triton may batch requests for a packed file, and up to how many rows.

Triton batches along the first dim, and only if all inputs and outputs have it: then `max_batch_size` is 1 or more and
`dims` leave it out. Otherwise `max_batch_size` is 0, a request is run as it came, and the reason is told.

Source: Maximum Batch Size in
https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md, and
CompareDimsSupported in https://github.com/triton-inference-server/onnxruntime_backend/blob/main/src/onnxruntime_utils.cc
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ensexport.errors import TritonError, UsageError
from ensexport.package.triton_tensors import Tensor

DEFAULT_MAX_BATCH_SIZE = 64
"""Rows: enough for a GPU to be busy with an ensemble of small networks, and little enough for large ones to fit."""
_LARGEST = 2**31 - 1  # the field is an int32


@dataclass(frozen=True)
class Batching:
    """What was decided.

    Attributes:
        max_batch_size: Triton's field; 0 for no batching.
        reason: Why it does not batch; empty if it does.
    """

    max_batch_size: int
    reason: str = ""

    @property
    def is_batched(self) -> bool:
        """Do requests and answers have a batch dim of Triton's?"""
        return self.max_batch_size > 0


def decide_batching(
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    dims: Mapping[str, Sequence[int | None]],
    n_members: int,
    asked: int | None = None,
) -> Batching:
    """Say whether Triton may batch.

    Args:
        inputs: Of the file. Optional ones do not count: Triton leaves them out if it batches.
        outputs: Of the file.
        dims: Smallest and largest size of each dynamic dim, as in a manifest.
        n_members: For the reason.
        asked: `max_batch_size` if the user chose it; 0 for no batching.

    Raises:
        UsageError: The number asked for is none that Triton takes.
        TritonError: Batches are asked for, and the file cannot be batched, or not to that size.
    """
    if asked is not None and not 0 <= asked <= _LARGEST:
        raise UsageError(f"max_batch_size is {asked}: expected 0 (no batching) to {_LARGEST}.")
    if asked == 0:
        return Batching(0, "max_batch_size 0 was asked for")
    required = [tensor for tensor in inputs if not tensor.is_optional]
    reason = _obstacle([*required, *outputs], dims, n_members) if required else "no input has to be given"
    if reason and asked is not None:
        raise TritonError(
            f"cannot serve batches of {asked} with Triton: {reason}.", hint="Leave --max-batch-size out, or give 0."
        )
    if reason:
        return Batching(0, reason)
    batch = str(required[0].shape[0])
    largest = dims[batch][1]
    if asked is not None and largest is not None and asked > largest:
        raise TritonError(
            f"cannot serve batches of {asked} with Triton: the model takes '{batch}' up to {largest}.",
            hint=f"Give --max-batch-size {largest} or less.",
        )
    return Batching(asked or min(DEFAULT_MAX_BATCH_SIZE, largest or DEFAULT_MAX_BATCH_SIZE))


def _obstacle(tensors: Sequence[Tensor], dims: Mapping[str, Sequence[int | None]], n_members: int) -> str:
    """Why these tensors have no batch that Triton could use; empty if they have one."""
    batch = ""
    for tensor in tensors:
        if not tensor.shape:
            return f"{tensor} has no dimension"
        first, *others = tensor.shape
        if first not in dims:
            return f"{tensor} begins with {first}, which is no dynamic dimension{_remedy(tensor, dims, n_members)}"
        if batch and first != batch:
            return f"{tensor} begins with '{first}', and {tensors[0]} with '{batch}'"
        batch = str(first)
        if any(isinstance(dim, str) and batch in re.findall(r"\w+", dim) for dim in others):
            return f"{tensor} has '{batch}' twice, so that its rows depend on one another"
    smallest = dims[batch][0] or 0
    return f"the model takes '{batch}' from {smallest} on, and Triton makes batches of 1" if smallest > 1 else ""


def _remedy(tensor: Tensor, dims: Mapping[str, Sequence[int | None]], n_members: int) -> str:
    if tensor.shape[0] != n_members:
        return ""
    if tensor.role == "output" and len(tensor.shape) > 1 and tensor.shape[1] in dims:
        return ": it holds the members first; --member-axis 1 puts the batch there, --emit mean has it there"
    return ": it holds the members first"
