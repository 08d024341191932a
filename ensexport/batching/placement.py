"""Which ops of the batched graph run once a member instead of once for all.

Batching an op saves calls and fills the machine better; it does not save arithmetic, and some runtimes have slower
kernels for the batched form of some shapes. So the ops that cost something are placed one by one: batched, or apart
with the kernels a loop over the members would run. What stands between two ops that run apart runs apart too, and one
`Concat` leads back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from ensexport.batching.member_graph import MemberGraph

aten = torch.ops.aten

Placement = Callable[[MemberGraph, int], frozenset[fx.Node]]

CONVS = {
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
}
LINEARS = {aten.linear.default, aten.addmm.default, aten.mm.default}
PRODUCTS = {aten.matmul.default, aten.bmm.default, aten.baddbmm.default, aten.scaled_dot_product_attention.default}
HEAVY = CONVS | LINEARS | PRODUCTS
