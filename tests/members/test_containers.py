import argparse
import itertools

import pytest
import torch

from ensexport.errors import CheckpointError, NoWeightsError
from ensexport.members.containers import CONTAINER_KEYS, Extracted, Origin, extract_state, read_origin, strip_prefix
from ensexport.members.selection import Selection

STATE = {"w": torch.ones(2), "b": torch.zeros(1)}


def test_a_bare_state_dict_is_taken_as_it_is():
    assert extract_state(STATE, "m.pt") == Extracted(STATE, None)


@pytest.mark.parametrize("key", CONTAINER_KEYS)
def test_each_container_key_is_found(key):
    assert extract_state({"epoch": 3, key: STATE, "optimizer": {"state": {}}}, "m.pt") == Extracted(STATE, key)


@pytest.mark.parametrize(("higher", "lower"), list(itertools.pairwise(CONTAINER_KEYS)))
def test_the_priority_is_that_of_the_table(higher, lower):
    other = {"other": torch.zeros(3)}
    found = extract_state({lower: other, higher: STATE}, "m.pt")
    assert (found.state, found.container_key, found.others) == (STATE, higher, (lower,))


def test_an_empty_or_missing_container_is_passed_over():
    loaded = {"state_dict_ema": None, "ema": {}, "state_dict": STATE}
    assert extract_state(loaded, "m.pt") == Extracted(STATE, "state_dict")


def test_a_parameter_named_like_a_container_is_a_parameter():
    state = {"weights": torch.ones(2), "net": torch.ones(1)}
    assert extract_state(state, "m.pt") == Extracted(state, None)


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


# -- several sets of weights in one file -------------------------------------------------------------

RAW = {"w": torch.zeros(2)}


@pytest.mark.parametrize(
    ("loaded", "ema", "raw"),
    [
        ({"state_dict": RAW, "state_dict_ema": STATE}, "state_dict_ema", "state_dict"),
        ({"model": RAW, "model_ema": STATE}, "model_ema", "model"),
        ({"state_dict": STATE, "ema_state_dict": RAW}, "state_dict", "ema_state_dict"),
        ({"state_dict": STATE, "current_model_state": RAW}, "state_dict", "current_model_state"),
    ],
    ids=["timm", "torchvision", "mmengine", "lightning"],
)
def test_averaged_weights_are_taken_unless_the_raw_ones_are_asked_for(loaded, ema, raw):
    for weights, key, state in ((None, ema, STATE), ("ema", ema, STATE), ("raw", raw, RAW)):
        found = extract_state(loaded, "m.pt", Selection(weights=weights))
        assert (found.state, found.container_key) == (state, key)
        assert found.weights == ("raw" if weights == "raw" else "ema")
        assert found.others == ((ema if weights == "raw" else raw),)


def test_weights_that_are_not_there_are_refused():
    with pytest.raises(CheckpointError, match=r"'m.pt' holds no averaged weights \(--weights ema\): found 'model'"):
        extract_state({"model": RAW}, "m.pt", Selection(weights="ema"))
    with pytest.raises(CheckpointError, match=r"holds no averaged weights .*found a bare state dict"):
        extract_state(RAW, "m.pt", Selection(weights="ema"))
    with pytest.raises(CheckpointError, match=r"'m.pt' holds no raw weights \(--weights raw\): found 'ema'"):
        extract_state({"ema": STATE}, "m.pt", Selection(weights="raw"))
    assert extract_state(RAW, "m.pt", Selection(weights="raw")).state == RAW


@pytest.mark.parametrize("key", ["student", "nested.inner", "with.dot"])
def test_a_key_the_user_names_is_taken(key):
    loaded = {"state_dict": RAW, "student": STATE, "nested": {"inner": STATE}, "with.dot": STATE}
    found = extract_state(loaded, "m.pt", Selection(key=key))
    assert (found.state, found.container_key) == (STATE, key)


def test_a_key_that_holds_no_weights_is_refused():
    with pytest.raises(CheckpointError, match=r"'m.pt' holds no state dict under 'a.b': found a dict with 'model'"):
        extract_state({"model": RAW}, "m.pt", Selection(key="a.b"))
    with pytest.raises(CheckpointError, match=r"'x' in 'm.pt' is no plain state dict: .*found 'n', an int"):
        extract_state({"x": {"w": torch.ones(1), "n": 3}}, "m.pt", Selection(key="x"))


def test_weights_under_an_unknown_key_are_pointed_to():
    with pytest.raises(CheckpointError, match="holds no state dict") as caught:
        extract_state({"student": STATE, "epoch": 3}, "m.pt")
    assert caught.value.hint == "Say which holds the weights: --key student."


def test_an_optimizer_s_state_is_told_as_such():
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(NoWeightsError, match=r"'m.pt' holds an optimizer's state, no weights") as caught:
        extract_state(optimizer.state_dict(), "m.pt")
    assert (caught.value.exit_code, caught.value.code) == (3, "E_NO_WEIGHTS")


@pytest.mark.parametrize("container", [None, "ema", "model"])
def test_a_module_stands_for_its_state_dict(container):
    module = torch.nn.Linear(2, 2)
    found = extract_state(module if container is None else {container: module, "epoch": 1}, "m.pt")
    assert list(found.state) == ["weight", "bias"]
    assert found.container_key == container


def test_weights_one_level_deeper_are_found_where_one_key_alone_has_them():
    app = {"model": STATE, "optim": {"state": {}, "param_groups": []}}
    found = extract_state({"app": app, "step": 3}, "m.pt")
    assert (found.state, found.container_key) == (STATE, "app.model")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        extract_state({"first": app, "second": app}, "m.pt")
