import pytest
import torch
from torch import nn

from ensexport.errors import StackError
from ensexport.members.rebuilding import load_exactly, tensors_outside, tied_names


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, x):
        return self.head(self.emb(x))


class WithView(nn.Module):
    """A plain attribute that is a view of a parameter, as hand-written fused layers have."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 2))
        self.top = self.w.detach()[:2]


class Unsaved(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(2, 2)
        self.register_buffer("table", torch.ones(3), persistent=False)
        self.register_buffer("saved", torch.ones(3))
        self.scale = torch.ones(1)
        self.register_buffer("nothing", None)


def test_weights_are_loaded_in_their_own_dtype_and_shared():
    module = nn.BatchNorm1d(3)
    state = {name: value.clone() for name, value in nn.BatchNorm1d(3).state_dict().items()}
    state["weight"] = torch.arange(3.0).to(torch.bfloat16)
    load_exactly(module, state)
    assert module.weight.dtype == torch.bfloat16
    assert module.weight.data_ptr() == state["weight"].data_ptr()
    assert torch.equal(module.weight, state["weight"])
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_tied_names_are_one_object_afterwards():
    module, weight = Tied(), torch.randn(5, 3)
    assert tied_names(module) == (("emb.weight", "head.weight"),)
    load_exactly(module, {"emb.weight": weight, "head.weight": weight.clone()})
    assert module.head.weight is module.emb.weight
    assert torch.equal(module(torch.tensor([2])), (weight[2] @ weight.T)[None])


def test_a_shared_submodule_is_loaded_once_and_stays_shared():
    part = nn.Linear(2, 2)
    module = nn.Sequential(part, nn.ReLU(), part)
    load_exactly(module, {name: torch.ones_like(value) for name, value in module.state_dict().items()})
    assert module[0] is module[2]
    assert torch.equal(module[2].weight, torch.ones(2, 2))


def test_recurrent_layers_use_the_loaded_weights():
    source, module = (nn.LSTM(3, 4, batch_first=True).eval() for _ in range(2))
    load_exactly(module, source.state_dict())
    x = torch.randn(2, 5, 3)
    assert torch.equal(module(x)[0], source(x)[0])


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrized_layers_use_the_loaded_weights(wrap):
    source, module = (wrap(nn.Linear(3, 4)).eval() for _ in range(2))
    load_exactly(module, source.state_dict())
    x = torch.randn(2, 3)
    assert torch.equal(module(x), source(x))


def test_a_lazy_layer_takes_the_weights():
    module = nn.LazyLinear(2)
    load_exactly(module, {"weight": torch.ones(2, 3), "bias": torch.zeros(2)})
    assert torch.equal(module(torch.ones(1, 3)), torch.full((1, 2), 3.0))


def test_a_view_of_a_parameter_follows_the_loaded_values():
    module, weight = WithView(), torch.randn(4, 2)
    load_exactly(module, {"w": weight})
    assert torch.equal(module.top, weight[:2])
    assert module.w.data_ptr() != weight.data_ptr()


def test_a_view_of_a_parameter_cannot_change_its_dtype():
    with pytest.raises(StackError, match=r"'top' is a view of a parameter, so that 'w' cannot change from .*float64"):
        load_exactly(WithView(), {"w": torch.randn(4, 2, dtype=torch.float64)})


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(StackError, match=r"does not take the weights: .*Missing key.*bias"):
        load_exactly(nn.Linear(2, 2), {"weight": torch.zeros(2, 2)})


def test_tensors_outside_the_state_dict_are_found():
    assert set(tensors_outside(Unsaved(), sharing=False)) == {"table", "scale"}
    assert tensors_outside(Unsaved(), sharing=True) == {}
    assert set(tensors_outside(WithView(), sharing=True)) == {"top"}
    assert tensors_outside(nn.LSTM(2, 2), sharing=False) == {}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_what_a_hook_recomputes_is_not_counted(wrap):
    module = nn.Sequential(wrap(nn.Linear(2, 2)))
    assert tensors_outside(module, sharing=False) == {}
    assert tensors_outside(module, sharing=True) == {}


def test_a_buffer_tied_to_an_unsaved_one_takes_the_loaded_value():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            table = torch.zeros(2)
            self.register_buffer("first", table, persistent=False)
            self.register_buffer("second", table)

    module = Net()
    load_exactly(module, {"second": torch.ones(2)})
    assert torch.equal(module.first, torch.ones(2))
