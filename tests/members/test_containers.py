import argparse
import itertools

import pytest
import torch

from ensexport.errors import CheckpointError
from ensexport.members.containers import CONTAINER_KEYS, Origin, extract_state, read_origin, strip_prefix

STATE = {"w": torch.ones(2), "b": torch.zeros(1)}


def test_a_bare_state_dict_is_taken_as_it_is():
    assert extract_state(STATE, "m.pt") == (STATE, None)


@pytest.mark.parametrize("key", CONTAINER_KEYS)
def test_each_container_key_is_found(key):
    assert extract_state({"epoch": 3, key: STATE, "optimizer": {"state": {}}}, "m.pt") == (STATE, key)


@pytest.mark.parametrize(("higher", "lower"), list(itertools.pairwise(CONTAINER_KEYS)))
def test_the_priority_is_that_of_the_table(higher, lower):
    other = {"other": torch.zeros(3)}
    assert extract_state({lower: other, higher: STATE}, "m.pt") == (STATE, higher)


def test_an_empty_or_missing_container_is_passed_over():
    loaded = {"state_dict_ema": None, "ema": {}, "state_dict": STATE}
    assert extract_state(loaded, "m.pt") == (STATE, "state_dict")


def test_a_parameter_named_like_a_container_is_a_parameter():
    state = {"weights": torch.ones(2), "net": torch.ones(1)}
    assert extract_state(state, "m.pt") == (state, None)


@pytest.mark.parametrize(
    ("loaded", "found"),
    [
        ([1, 2], "found a list of 2"),
        (torch.zeros(2, 3), r"found a tensor of shape \(2, 3\)"),
        (None, "found None"),
        (3, "found an int"),
        ({}, "found an empty dict"),
        (
            {"epoch": 3, "log": [1, 2], "args": None},
            r"'epoch' \(an int\), 'log' \(a list of 2\), 'args' \(None\)",
        ),
        ({"state_dict": {"w": [1.0]}}, r"'state_dict' \(a dict of 1\)"),
    ],
    ids=["list", "tensor", "none", "number", "empty", "no tensors", "no tensors inside"],
)
def test_what_holds_no_state_dict_says_what_it_holds(loaded, found):
    with pytest.raises(CheckpointError, match=f"'m.pt' holds no state dict: .*{found}"):
        extract_state(loaded, "m.pt")


@pytest.mark.parametrize(
    ("loaded", "where"),
    [
        ({"w": torch.ones(1), "epoch": 3}, "^'m.pt' is no plain state dict.* found 'epoch', an int"),
        (
            {"ema": {"w": torch.ones(1), "extra": None}, "model": STATE},
            "'ema' in 'm.pt' .* found 'extra', None",
        ),
        ({1: torch.ones(1)}, "^'m.pt' .* found 1, a tensor of shape"),
    ],
    ids=["bare", "container", "name is no text"],
)
def test_a_value_that_is_no_tensor_is_named_and_not_dropped(loaded, where):
    with pytest.raises(CheckpointError, match=where):
        extract_state(loaded, "m.pt")


@pytest.mark.parametrize(
    ("names", "expected", "prefix"),
    [
        (["module.w", "module.b"], ["w", "b"], "module."),
        (["_orig_mod.w"], ["w"], "_orig_mod."),
        (["module._orig_mod.w"], ["w"], "module._orig_mod."),
        (["_orig_mod.module.w"], ["w"], "_orig_mod.module."),
        (["module.w", "b"], ["module.w", "b"], None),
        (["module.", "module.w"], ["module.", "module.w"], None),
        (["w"], ["w"], None),
        ([], [], None),
    ],
)
def test_a_prefix_is_taken_off_only_if_all_names_have_it(names, expected, prefix):
    state = {name: torch.zeros(1) for name in names}
    stripped, found = strip_prefix(state)
    assert list(stripped) == expected
    assert found == prefix


@pytest.mark.parametrize(
    ("loaded", "origin"),
    [
        (STATE, None),
        ([1], None),
        ({"arch": 3}, None),
        ({"arch": "resnet18"}, Origin("resnet18", {})),
        ({"arch": "resnet18", "args": {"num_classes": 3}}, Origin("resnet18", {})),
        (
            {"arch": "vit", "args": argparse.Namespace(num_classes=3, gp="avg", in_chans=None, lr=0.1)},
            Origin("vit", {"num_classes": 3, "global_pool": "avg"}),
        ),
        (
            {"arch": "vit", "args": argparse.Namespace(num_classes=3, model_kwargs={"depth": 4, 1: 2})},
            Origin("vit", {"num_classes": 3, "depth": 4}),
        ),
    ],
)
def test_what_a_checkpoint_says_of_its_own_network(loaded, origin):
    assert read_origin(loaded) == origin
