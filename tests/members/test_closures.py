"""Functions in a network that hold the network itself: a copy would run the original's weights."""

import functools
import types

import pytest
import torch
from torch import nn

import ensexport
from ensexport.errors import ArchitectureError, StackError
from ensexport.members.closures import function_with_own_parts
from tests.cli.projects import load_script


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)


def patched():
    net = Net()
    forward = net.forward
    net.forward = lambda x: forward(x / 255)
    return net


def patched_inside():
    net = nn.Sequential(Net())
    held = {"layers": [net[0].layer]}
    net[0].forward = functools.partial(lambda x: held["layers"][0](x / 255))
    return net


def hooked():
    net = Net()
    net.register_forward_hook(lambda module, args, output: output + net.layer.bias)
    return net


def with_default():
    net = Net()
    net.forward = lambda x, weight=net.layer.weight: x @ weight.T
    return net


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (patched, "'forward' of Net"),
        (patched_inside, "'forward' of Net"),
        (hooked, "'forward_hooks' of Net"),
        (with_default, "'forward' of Net"),
    ],
)
def test_they_are_found_and_named(make, named):
    assert function_with_own_parts(make()) == named


def bound():
    """`MethodType` is bound to the copy by `deepcopy`."""
    net = Net()
    net.forward = types.MethodType(lambda self, x: self.layer(x / 255), net)
    return net


def with_harmless_hook():
    net, scale, other = Net(), 255.0, nn.Linear(2, 2)
    net.register_forward_hook(lambda module, args, output: output / scale + other.bias[0])
    return net


@pytest.mark.parametrize("make", [Net, bound, with_harmless_hook])
def test_what_a_copy_does_right_is_let_be(make):
    assert function_with_own_parts(make()) is None


@pytest.mark.parametrize("make", [patched, bound])
def test_members_of_a_factory_that_patches_forward_run_their_own_weights(tmp_path, make):
    """They were copies of one network, all with its weights, and so was the loop they were compared with."""
    (tmp_path / "ckpts").mkdir()
    expected, x = [], torch.ones(2, 4) * 100
    for seed in range(2):
        torch.manual_seed(seed)
        net = Net()
        torch.save(net.state_dict(), tmp_path / "ckpts" / f"{seed}.pt")
        expected.append(net(x / 255))
    members = ensexport.load_members(tmp_path / "ckpts", model=make)
    for index in range(2):
        torch.testing.assert_close(members.build(index)(x), expected[index])
    path = tmp_path / "e.ts"
    ensexport.export(members, path, inputs=["x:float32[batch,4]"], batches=(1, 3), seeds=(0,))
    torch.testing.assert_close(load_script(path)(x), torch.stack(expected))


def test_where_only_a_copy_would_do_it_is_refused(tmp_path):
    one = patched()
    torch.save(one.state_dict(), tmp_path / "m.pt")
    with pytest.raises(ArchitectureError, match=r"cannot copy .*: 'forward' of Net is a function that holds a "):
        ensexport.load_members([tmp_path / "m.pt"], model=one).build(0)
    with pytest.raises(StackError, match="cannot stack: attribute 'forward' is or holds a function that reaches"):
        ensexport.stack([patched(), patched()])
