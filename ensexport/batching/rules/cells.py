"""One step of LSTM, GRU and RNN cells: two linear layers and elementwise ops."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ensexport.batching.compose import composed

aten = torch.ops.aten


@composed(aten.lstm_cell.default)
def lstm_cell(
    x: Tensor, state: list[Tensor], w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`x (B, I)`, state `h, c (B, H)`; gates in torch's order input, forget, cell, output."""
    hidden, memory = state
    gates = F.linear(x, w_ih, b_ih) + F.linear(hidden, w_hh, b_hh)
    i, f, g, o = gates.chunk(4, -1)
    memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
    return o.sigmoid() * memory.tanh(), memory


@composed(aten.gru_cell.default)
def gru_cell(
    x: Tensor, hidden: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """`x (B, I)`, `hidden (B, H)`; gates in torch's order reset, update, new."""
    r_x, z_x, n_x = F.linear(x, w_ih, b_ih).chunk(3, -1)
    r_h, z_h, n_h = F.linear(hidden, w_hh, b_hh).chunk(3, -1)
    new = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return new + (z_x + z_h).sigmoid() * (hidden - new)


@composed(aten.rnn_tanh_cell.default)
def rnn_tanh_cell(
    x: Tensor, hidden: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """`x (B, I)`, `hidden (B, H)`."""
    return (F.linear(x, w_ih, b_ih) + F.linear(hidden, w_hh, b_hh)).tanh()


@composed(aten.rnn_relu_cell.default)
def rnn_relu_cell(
    x: Tensor, hidden: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """`x (B, I)`, `hidden (B, H)`."""
    return (F.linear(x, w_ih, b_ih) + F.linear(hidden, w_hh, b_hh)).relu()
