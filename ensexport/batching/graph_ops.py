"""The ops a graph may hold that is written into a file and read back from one.

A file is data of strangers: reading it must not run code, touch files or write to memory that is not its own. So only
functional ops of torch's own namespace are known, with a tensor among their arguments and nothing but tensors to
return; a few that make tensors from nothing; and arithmetic on sizes.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket

aten = torch.ops.aten
Target = Callable[..., Any]

_FACTORIES = {
    *("full", "zeros", "ones", "arange", "eye", "empty", "scalar_tensor", "linspace", "logspace"),
    *("tril_indices", "triu_indices", "hann_window", "hamming_window", "blackman_window", "bartlett_window"),
}
_SIZES = {"sym_size", "sym_numel"}
_PRIVATE = {  # of the names that begin with _, those that torch.export and our own rules write
    *("_to_copy", "_unsafe_view", "_reshape_alias", "_reshape_copy", "_unsafe_index", "_unsafe_index_put"),
    *("_softmax", "_log_softmax", "_safe_softmax", "_masked_softmax", "_conj", "_conj_copy", "_conj_physical"),
    *("_neg_view", "_neg_view_copy", "_stack", "_aminmax", "_cdist_forward", "_euclidean_dist", "_pdist_forward"),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_convolution", "_embedding_bag", "_trilinear"),
    *("_native_batch_norm_legit_no_training", "_fused_rms_norm", "_weight_norm", "_weight_norm_interface"),
    *("_prelu_kernel", "_addmm_activation", "_int_mm", "_grouped_mm", "_logcumsumexp", "_chunk_cat"),
    *("_fft_c2c", "_fft_c2r", "_fft_r2c", "_linalg_det", "_linalg_eigh", "_linalg_eigvals", "_linalg_slogdet"),
    *("_linalg_solve_ex", "_linalg_svd", "_lu_with_info", "_scaled_dot_product_attention_math"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_fused_attention_overrideable"),
    *("_native_multi_head_attention", "_transformer_encoder_layer_fwd", "_transform_bias_rescale_qkv"),
    *("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "_pad_circular"),
    *("_pad_enum", "_unique2", "_spdiags", "_foreach_add", "_foreach_mul"),
}
_DUNDER = {"__and__", "__or__", "__xor__", "__lshift__", "__rshift__"}
_REFUSED = {"set", "resize", "resize_as", "rename", "pin_memory", "cuda", "share_memory", "is_pinned", "item"}
_OTHER_KINDS = ("quantize", "mkldnn", "to_mkldnn", "cudnn", "miopen", "fbgemm", "sparse", "to_sparse", "to_padded")
_ARITHMETIC: dict[str, Target] = {
    **{
        f"operator.{name}": getattr(operator, name)
        for name in ("getitem", "add", "sub", "mul", "floordiv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge")
    },
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_max", "sym_min", "sym_int", "sym_not", "sym_ite")},
}
_NAME = re.compile(r"aten\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")


def name_of(target: Any) -> str:
    """`aten.add.Tensor`, `operator.mul`; whatever torch calls it where it is not known here."""
    if isinstance(target, OpOverload):
        return f"{target.namespace}.{target._schema.name.rpartition('::')[2]}.{target._overloadname}"
    return next((name for name, known in _ARITHMETIC.items() if known is target), str(target))


def find_op(name: str) -> Target | None:
    """The op of a name that `name_of` returned; None for all that a file may not ask for."""
    if name in _ARITHMETIC:
        return _ARITHMETIC[name]
    matched = _NAME.fullmatch(name)
    if matched is None or (matched[1].startswith("__") and matched[1] not in _DUNDER):
        return None
    packet = getattr(aten, matched[1], None)
    if not isinstance(packet, OpOverloadPacket) or matched[2] not in packet.overloads():  # type: ignore[no-untyped-call]
        return None
    op = getattr(packet, matched[2])
    return op if isinstance(op, OpOverload) and _is_harmless(op) else None


def _is_harmless(op: OpOverload) -> bool:
    schema, name = op._schema, op._schema.name.rpartition("::")[2]
    if op.namespace != "aten" or schema.is_mutable or name in _REFUSED or name.startswith(_OTHER_KINDS):
        return False
    if name.startswith("_") and name not in _PRIVATE | _DUNDER:
        return False
    takes_tensors = any("Tensor" in str(argument.type) for argument in schema.arguments)
    if name in _SIZES:
        return takes_tensors
    returns_tensors = bool(schema.returns) and all("Tensor" in str(result.type) for result in schema.returns)
    return returns_tensors and (takes_tensors or name in _FACTORIES)
