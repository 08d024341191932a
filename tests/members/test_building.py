"""Members built from one empty copy of the network are what building anew gives."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from ensexport.members.architecture import resolve_architecture
from ensexport.members.building import Builder
from ensexport.members.rebuilding import load_exactly
from tests.members.test_rebuilding import Tied, Unsaved, WithView


class FillsInPlace(nn.Linear):
    def _load_from_state_dict(self, state, prefix, *rest):
        with torch.no_grad():
            self.weight.copy_(state[prefix + "weight"])
            self.bias.copy_(state[prefix + "bias"])


class Derives(nn.Linear):
    """Keeps a buffer that no file holds and that it computes from the weights when they are loaded."""

    def __init__(self):
        super().__init__(3, 2)
        self.register_buffer("total", torch.zeros(()), persistent=False)

    def _load_from_state_dict(self, state, prefix, *rest):
        super()._load_from_state_dict(state, prefix, *rest)
        self.total = state[prefix + "weight"].sum()


def counted(make):
    calls = []

    def factory():
        calls.append(1)
        return make()

    return Builder(resolve_architecture(factory)), calls


MAKERS = {
    "plain": lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
    "tied": Tied,
    "unsaved": Unsaved,
    "view": WithView,
    "in place": lambda: FillsInPlace(3, 2),
    "derives": Derives,
    "weight norm": lambda: weight_norm(nn.Linear(3, 2)),
    "parametrized": lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_each_member_has_its_own_weights_as_if_built_anew(make):
    builder, _ = counted(make)
    for seed in range(3):
        torch.manual_seed(seed)
        state = {name: tensor.clone() for name, tensor in make().state_dict().items()}
        anew = make().eval()
        load_exactly(anew, state)
        built = builder.build(state.copy)
        assert not built.training
        assert not any(tensor.requires_grad for tensor in built.parameters())
        expected = {**dict(anew.named_parameters()), **dict(anew.named_buffers())}
        found = {**dict(built.named_parameters()), **dict(built.named_buffers())}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    ("name", "n_builds"),
    [("plain", 1), ("tied", 1), ("unsaved", 1), ("parametrized", 1), ("view", 5), ("in place", 5), ("weight norm", 1)],
)
def test_the_architecture_is_built_once_where_a_copy_is_the_same(name, n_builds):
    builder, calls = counted(MAKERS[name])
    for _ in range(4):
        builder.build(lambda: MAKERS[name]().state_dict())
    assert len(calls) == n_builds


def test_members_share_nothing_that_a_forward_pass_may_write_to():
    builder, _ = counted(Unsaved)
    first, second, third = (builder.build(lambda: Unsaved().state_dict()) for _ in range(3))
    second.table.zero_()
    second.scale.zero_()
    assert float(third.table.sum()) == float(first.table.sum()) == 3
    assert float(third.scale) == 1


@pytest.mark.parametrize(
    ("name", "is_plain"), [("plain", True), ("tied", True), ("unsaved", True), ("derives", False), ("view", True)]
)
def test_a_builder_knows_whether_more_than_the_weights_differs_between_members(name, is_plain):
    builder, _ = counted(MAKERS[name])
    assert builder.is_plain is None
    builder.build(lambda: MAKERS[name]().state_dict())
    assert builder.is_plain is is_plain
