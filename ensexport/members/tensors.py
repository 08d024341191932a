"""The tensors of one state dict: made plain, checked, searched for NaN, and given a digest.

Later stages may rely on what `plain_state` returns: dense, contiguous, on the CPU, no gradient, no subclass,
and tied weights are the same object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch

from ensexport.errors import CheckpointError
from ensexport.members.wording import quote_path

_SPARE_BYTES = 2**20


def plain_state(state: Mapping[str, torch.Tensor], path: str, *, size_bytes: int) -> dict[str, torch.Tensor]:
    """Turn loaded tensors into plain dense ones with memory of their own, and keep tied weights tied.

    Args:
        state: Tensors as they came out of the file. Complex ones are fine.
        path: For messages.
        size_bytes: Size of the file.

    Returns:
        New dict, same order. Two names whose tensors share storage, place and shape hold the same object.

    Raises:
        CheckpointError: See `check_plain`.
    """
    check_plain(state, path, size_bytes=size_bytes)
    return own_state(state)


def own_state(
    state: Mapping[str, torch.Tensor], copy: Callable[[torch.Tensor], torch.Tensor | None] | None = None
) -> dict[str, torch.Tensor]:
    """Give tensors memory of their own, contiguous, and keep tied weights tied.

    What was loaded may lie in the file, mapped into memory, or be a small part of something large: so a tensor that
    does not fill its storage, or whose storage is not its own, is copied.

    Args:
        state: Tensors that `check_plain` took.
        copy: Copies a tensor that lies in a file; returns None for others.

    Returns:
        New dict, same order. Two names whose tensors share storage, place and shape hold the same object.
    """
    result: dict[str, torch.Tensor] = {}
    seen: dict[tuple[object, ...], torch.Tensor] = {}
    for name, tensor in state.items():
        place = _place(tensor)
        if place not in seen:
            copied = None if copy is None else copy(tensor.detach())
            seen[place] = _own(tensor) if copied is None else copied
        result[name] = seen[place]
    return result


def check_plain(state: Mapping[str, torch.Tensor], path: str, *, size_bytes: int) -> None:
    """Refuse tensors that cannot be packed, and more of them than the file can hold. No value is looked at.

    A file of a kilobyte can hold a stride-0 tensor of a terabyte: so the bytes that the tensors would fill
    are bounded by four times the file, plus 1 MiB for honest small expanded buffers.

    Args:
        state: Tensors as they came out of the file. Complex ones are fine.
        path: For messages.
        size_bytes: Size of the file.

    Raises:
        CheckpointError: A tensor is sparse, quantised, nested, without data (meta) or of a subclass, or the
            tensors claim far more bytes than the file has; names the tensor.
    """
    seen: set[tuple[object, ...]] = set()
    budget = 4 * size_bytes + _SPARE_BYTES
    for name, tensor in state.items():
        _check_kind(name, tensor, path)
        place = _place(tensor)
        if place not in seen:
            claimed = tensor.numel() * tensor.dtype.itemsize
            budget -= claimed
            if budget < 0:
                raise CheckpointError(
                    f"tensor {name!r} in {quote_path(path)} claims {claimed} bytes "
                    f"(shape {tuple(tensor.shape)}, strides {tensor.stride()}), its storage has "
                    f"{tensor.untyped_storage().nbytes()} and the file {size_bytes}.",
                    hint="Save a contiguous copy of the tensor.",
                )
            seen.add(place)


def find_nonfinite(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or Inf, in order."""
    return [name for name, tensor in state.items() if not _is_finite(tensor)]


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return a SHA-256 of the weights alone: names, dtypes, shapes and bytes, in the order of the names.

    The same weights give the same digest whatever the file format, name order or sharing of storage.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{len(name.encode('utf-8', 'surrogatepass'))} ".encode())
        digest.update(name.encode("utf-8", "surrogatepass"))
        digest.update(f" {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(raw_bytes(tensor).numpy().data)
    return digest.hexdigest()


def same_bytes(first: torch.Tensor, second: torch.Tensor) -> bool:
    """True if dtype, shape and every byte agree; unlike `torch.equal`, NaN equals the same NaN."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return first is second or torch.equal(raw_bytes(first), raw_bytes(second))


def raw_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor as a vector of uint8, in row-major order."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    storage = plain.untyped_storage()
    is_own = storage.resizable() and storage.nbytes() == plain.numel() * plain.dtype.itemsize
    return plain if is_own else plain.clone(memory_format=torch.contiguous_format)


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    """Equal for two tensors that are views of the same bytes in the same way."""
    pointer = tensor.untyped_storage().data_ptr()
    if not pointer or not tensor.numel():
        return (id(tensor),)
    flags = (tensor.is_conj(), tensor.is_neg())
    return (pointer, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype, flags)


def refuse_kind(name: str, kind: str, path: str) -> CheckpointError:
    """Return the error for a tensor that cannot be packed.

    Args:
        name: The tensor's name; may be empty.
        kind: `sparse`, `quantised`, `nested`, `meta`, or what it is in words.
        path: For messages.
    """
    first, _, more = kind.partition(" ")
    what, advice = _KINDS.get(first, (kind, "Save it as a plain tensor."))
    which = f"tensor {name!r}" if name else "a tensor"
    return CheckpointError(
        f"cannot use {which} in {quote_path(path)}: expected a dense tensor, got one "
        f"{f'{what} {more}' if first in _KINDS and more else what}.",
        hint=advice,
    )


_KINDS = {
    "sparse": ("sparse", "Save it with .to_dense()."),
    "nested": ("nested", "Save it with .to_dense()."),
    "quantised": ("quantised", "Save it with .dequantize()."),
    "meta": ("without data (device meta)", "Save the model after its weights are loaded."),
}


def _check_kind(name: str, tensor: torch.Tensor, path: str) -> None:
    kind = ""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        kind = f"of type {type(tensor).__qualname__}"
    elif tensor.is_quantized:
        kind = f"quantised ({tensor.dtype})"
    elif tensor.is_nested:
        kind = "nested"
    elif tensor.layout is not torch.strided:
        kind = f"sparse ({tensor.layout})"
    elif tensor.is_meta:
        kind = "meta"
    if kind:
        raise refuse_kind(name, kind, path)


def _is_finite(tensor: torch.Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()  # isfinite has no kernel for the float8 types
    # NaN and Inf stay in a sum, which takes a twentieth of the time; finite numbers may add up to Inf, though.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())
