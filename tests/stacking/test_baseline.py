"""The loop is the oracle, so it is proven by hand: weights, inputs and outputs written out as numbers."""

import pytest
import torch
from torch import nn

from ensexport import stack
from ensexport.errors import ModelInputError, ModelOutputError
from ensexport.stacking import run_member, run_members


class Hand(nn.Module):
    """y = W2 relu(W1 x + b1) + b2, then BatchNorm in eval mode."""

    def __init__(self, sign):
        super().__init__()
        self.hidden = nn.Linear(2, 2)
        self.out = nn.Linear(2, 1)
        self.norm = nn.BatchNorm1d(1, eps=0.25)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[1.0, 2.0], [-3.0, 1.0]]) * sign)
            self.hidden.bias.copy_(torch.tensor([0.5, -1.0]))
            self.out.weight.copy_(torch.tensor([[2.0, -1.0]]))
            self.out.bias.copy_(torch.tensor([0.25]))
            self.norm.running_mean.fill_(1.0)
            self.norm.running_var.fill_(0.75)  # sqrt(0.75 + 0.25) = 1
            self.norm.weight.fill_(3.0)
            self.norm.bias.fill_(-0.5)

    def forward(self, x):
        return self.norm(self.out(torch.relu(self.hidden(x))))


# x = (1, 2):   W1 x + b1 = (1 + 4 + 0.5, -3 + 2 - 1) = (5.5, -2); relu (5.5, 0); W2: 11 + 0.25 = 11.25;
#               norm: (11.25 - 1) / 1 * 3 - 0.5 = 30.25
# x = (-1, 0):  (-1 + 0.5, 3 - 1) = (-0.5, 2); relu (0, 2); -2 + 0.25 = -1.75; (-2.75) * 3 - 0.5 = -8.75
# sign -1, x = (1, 2):  (-5 + 0.5, 1 - 1) = (-4.5, 0); relu (0, 0); 0.25; (-0.75) * 3 - 0.5 = -2.75
# sign -1, x = (-1, 0): (1 + 0.5, -3 - 1) = (1.5, -4); relu (1.5, 0); 3 + 0.25 = 3.25; 2.25 * 3 - 0.5 = 6.25
X = torch.tensor([[1.0, 2.0], [-1.0, 0.0]])
BY_HAND = torch.tensor([[[30.25], [-8.75]], [[-2.75], [6.25]]])


class Source:
    """Members that are built on demand, as loaded checkpoints are."""

    def __init__(self, *makers):
        self.makers = makers

    def __len__(self):
        return len(self.makers)

    def build(self, member_index):
        return self.makers[member_index]().eval()


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64, torch.float16], ids=str)
def test_the_loop_gives_what_was_computed_by_hand(dtype):
    source = Source(lambda: Hand(1), lambda: Hand(-1))
    rows = list(run_members(source, [[{"x": X}], [{"x": X}]], dtype=dtype))
    assert [list(row[0]) for row in rows] == [["output"], ["output"]]
    got = torch.stack([row[0]["output"] for row in rows])
    assert got.dtype == (dtype or torch.float32)
    assert got.equal(BY_HAND.to(got.dtype))


def test_the_stack_gives_what_was_computed_by_hand():
    modules = [Hand(1), Hand(-1)]
    assert stack(modules)(X).equal(BY_HAND)
    assert stack(modules, in_dims=0)(torch.stack([X[:1], X[1:]])).equal(torch.tensor([[[30.25]], [[6.25]]]))


def test_a_stack_is_a_source_of_members_too():
    rows = list(run_members(stack([Hand(1), Hand(-1)]), [[{"x": X}, {"x": X[:1]}]] * 2))
    assert torch.stack([row[0]["output"] for row in rows]).equal(BY_HAND)
    assert rows[1][1]["output"].equal(BY_HAND[1, :1])


def test_each_member_gets_its_own_feeds():
    source = Source(lambda: Hand(1), lambda: Hand(1))
    first, second = run_members(source, [[{"x": X[:1]}], [{"x": X[1:]}]])
    assert first[0]["output"].equal(BY_HAND[0, :1])
    assert second[0]["output"].equal(BY_HAND[0, 1:])


def test_one_member_at_a_time_is_built():
    alive = []
    source = Source(*[lambda k=k: alive.append(k) or Hand(1) for k in range(3)])
    rows = run_members(source, [[{"x": X}]] * 3)
    next(rows)
    assert alive == [0]
    next(rows)
    assert alive == [0, 1]


class MakesTensors(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2, bias=False)
        nn.init.eye_(self.fc.weight)

    def forward(self, x):
        made = torch.zeros(2, 2) + torch.tensor(1 / 3)
        return {"made": made, "sum": made + self.fc(x), "index": torch.arange(2), "like": torch.ones_like(x)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_tensors_a_model_makes_itself_follow_the_dtype(dtype):
    got = run_member(MakesTensors(), {"x": X}, dtype=dtype)
    assert {name: value.dtype for name, value in got.items()} == {
        "made": dtype, "sum": dtype, "index": torch.int64, "like": dtype,
    }  # fmt: skip
    assert got["made"][0, 0] == torch.tensor(1 / 3, dtype=dtype)
    assert torch.get_default_dtype() == torch.float32


def test_the_default_dtype_is_put_back_after_an_error():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run_member(Hand(1), {"x": torch.ones(2, 5)}, dtype=torch.float64)
    assert torch.get_default_dtype() == torch.float32


def test_float64_sees_what_float32_rounds_away():
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 1.0]]))
    x = torch.tensor([[2.0**25, 1.0]])
    assert run_member(module, {"x": x})["output"].item() == 2.0**25
    assert run_member(module, {"x": x}, dtype=torch.float64)["output"].item() == 2.0**25 + 1


class Fourier(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1 + 1j, 2 - 1j]))
        self.register_buffer("count", torch.tensor(3))

    def forward(self, z):
        return (z * self.weight).imag * self.count


def test_complex_weights_and_inputs_keep_their_imaginary_part():
    z = torch.tensor([[1j, 1 + 0j]])
    # (1j)(1 + 1j) = -1 + 1j; (1)(2 - 1j) = 2 - 1j; times 3: imaginary parts 3 and -3
    got = run_member(Fourier(), {"z": z}, dtype=torch.float64)["output"]
    assert got.equal(torch.tensor([[3.0, -3.0]], dtype=torch.float64))


def test_integers_keep_their_dtype():
    module = nn.Embedding(4, 2)
    got = run_member(module, {"x": torch.tensor([[0, 3]])}, dtype=torch.float64)
    assert got["output"].dtype == torch.float64


class Writes(nn.Module):
    def forward(self, x):
        return x.add_(1)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64], ids=str)
def test_a_model_cannot_write_to_the_inputs_of_the_next(dtype):
    x = torch.zeros(2)
    rows = list(run_members(Source(Writes, Writes), [[{"x": x}]] * 2, dtype=dtype))
    assert [row[0]["output"].tolist() for row in rows] == [[1.0, 1.0], [1.0, 1.0]]
    assert x.tolist() == [0.0, 0.0]


def test_no_gradients_are_recorded():
    assert not run_member(Hand(1), {"x": X.clone().requires_grad_()})["output"].requires_grad


def test_inputs_and_outputs_that_do_not_fit():
    with pytest.raises(ModelInputError, match=r"cannot bind the inputs \(x, y\) to Hand\.forward\(x\): 2 inputs"):
        run_member(Hand(1), {"x": X, "y": X})

    class Text(nn.Module):
        def forward(self, x):
            return "text"

    with pytest.raises(ModelOutputError, match="the model returns a str"):
        run_member(Text(), {"x": X})
