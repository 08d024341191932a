"""How much memory one member's activations take."""

import torch
from torch import nn

from ensexport.batching.activations import activation_bytes
from tests.batching.runs import capture


class Branching(nn.Module):
    def forward(self, x):
        kept = x + 1  # alive until the end
        y = torch.relu(kept)
        y = y.reshape(y.shape[0], 2, -1).transpose(1, 2)  # no copies
        return (y * 2).flatten(1) + kept.reshape(kept.shape[0], -1)[:, :1]


def of(module, spec, **sizes):
    member, _ = capture(module.eval(), spec)
    return activation_bytes(member, sizes)


def test_a_chain_holds_an_argument_and_a_result_at_a_time():
    chain = nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 7))
    assert of(chain, "x:float32[batch,10]", batch=1) == 4 * 200
    assert of(chain, "x:float32[batch,10]", batch=13) == 13 * 4 * 200


def test_what_is_read_later_stays_and_another_shape_costs_nothing():
    assert of(Branching(), "x:float32[batch,8]", batch=5) == 4 * 5 * 8 * 3


def test_weights_are_no_activations():
    assert of(nn.Linear(1000, 1), "x:float32[batch,1000]", batch=2) == 4 * 2


def test_every_dynamic_dim_counts():
    small, large = (of(nn.Conv1d(1, 3, 3), "x:float32[batch,1,steps]", batch=2, steps=steps) for steps in (10, 100))
    assert (small, large) == (4 * 2 * 3 * 8, 4 * 2 * 3 * 98)
