import pytest
import torch
from torch import nn

import ensexport
from ensexport.errors import StackError
from ensexport.members.architecture import resolve_architecture
from ensexport.members.fitting import read_blueprint
from ensexport.members.parts import cut_prefix, split_state


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.body(x))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.emb.weight


def blueprint(model=Net):
    return read_blueprint(resolve_architecture(model))


def net(seed, width=4):
    torch.manual_seed(seed)
    return Net(width)


def split(state, model=Net, stripped=None):
    return split_state("'m.pt'", state, stripped, blueprint(model))


def assert_member(part, module):
    expected = module.state_dict()
    assert part.fitted.state.keys() == expected.keys()
    assert all(torch.equal(part.fitted.state[name], expected[name]) for name in expected)


class Holder(nn.Module):
    """Holds members under an attribute, as ensemble classes do."""

    def __init__(self, attribute, members, **others):
        super().__init__()
        setattr(self, attribute, nn.ModuleList(members))
        for name, module in others.items():
            setattr(self, name, module)


def test_a_file_with_the_architecture_s_own_names_is_one_member():
    (part,) = split(net(0).state_dict())
    assert_member(part, net(0))
    assert (part.index, part.dropped, part.fitted.stripped_prefix) == (None, (), None)


@pytest.mark.parametrize("prefix", ["model.", "net.", "a.b.c."])
def test_the_attribute_of_a_training_framework_is_found(prefix):
    (part,) = split({prefix + name: tensor for name, tensor in net(1).state_dict().items()}, stripped="module.")
    assert_member(part, net(1))
    assert part.fitted.stripped_prefix == f"module.{prefix}"


def test_compiled_parts_and_wrappers_inside_of_names_are_taken_out():
    wrapped = {
        f"model._orig_mod.{name.replace('body.', 'body._fsdp_wrapped_module._orig_mod.')}": tensor
        for name, tensor in net(1).state_dict().items()
    }
    (part,) = split(wrapped)
    assert_member(part, net(1))


def test_a_compiled_architecture_keeps_its_names():
    class Compiled(nn.Module):
        def __init__(self):
            super().__init__()
            self._orig_mod = nn.Linear(2, 2)

    (part,) = split(Compiled().state_dict(), Compiled)
    assert list(part.fitted.state) == ["_orig_mod.weight", "_orig_mod.bias"]


def test_what_belongs_to_losses_and_metrics_is_dropped_and_named():
    state = {f"model.{name}": tensor for name, tensor in net(1).state_dict().items()}
    state |= {
        "criterion.weight": torch.ones(2),
        "val_acc.correct": torch.ones(()),
        "bce_loss.pos_weight": torch.ones(2),
    }
    (part,) = split(state)
    assert_member(part, net(1))
    assert part.dropped == ("criterion.weight", "val_acc.correct", "bce_loss.pos_weight")
    bare = net(1).state_dict() | {"loss_fn.weight": torch.ones(2)}
    assert split(bare)[0].dropped == ("loss_fn.weight",)


def test_other_tensors_outside_of_the_prefix_are_refused():
    state = {f"backbone.{name}": tensor for name, tensor in net(1).state_dict().items()}
    pattern = r"'m.pt' holds the architecture under 'backbone.', and outside of it 'classifier.weight': .*"
    with pytest.raises(StackError, match=pattern + r"--strip-prefix backbone\. to leave") as caught:
        split(state | {"classifier.weight": torch.ones(2)})
    assert caught.value.exit_code == 4


def test_a_layer_that_is_called_like_a_metric_is_no_metric():
    class F1(nn.Module):
        def __init__(self):
            super().__init__()
            self.f1 = nn.Linear(2, 2)

    state = {"f1.weight": torch.ones(2, 2), "f1.bias": torch.ones(2), "f2.weight": torch.ones(2, 2)}
    (part,) = split(state, F1)
    assert "f2.weight" in part.fitted.state  # left for `check_fit` to refuse


def test_two_prefixes_that_fit_are_refused():
    state = {f"{prefix}.{name}": tensor for prefix in ("student", "teacher")
             for name, tensor in net(1).state_dict().items()}  # fmt: skip
    with pytest.raises(StackError, match=r"'m.pt' holds the architecture 'Net' under 'student.' and under 'teacher.'"):
        split(state)


def test_of_several_prefixes_the_one_whose_shapes_fit_is_taken():
    state = {f"small.{name}": tensor for name, tensor in net(1).state_dict().items()}
    state |= {f"metrics.{name}": tensor for name, tensor in net(1, width=9).state_dict().items()}
    (part,) = split(state)
    assert_member(part, net(1))


@pytest.mark.parametrize("attribute", ["estimators_", "core_models", "models", "members"])
@pytest.mark.parametrize("count", [1, 2, 12])
def test_the_members_of_an_ensemble_class_are_told_apart_in_order(attribute, count):
    members = [net(seed) for seed in range(count)]
    parts = split(Holder(attribute, members, criterion=nn.BCEWithLogitsLoss(pos_weight=torch.ones(2))).state_dict())
    assert [part.index for part in parts] == list(range(count))
    assert [part.fitted.stripped_prefix for part in parts] == [f"{attribute}.{k}." for k in range(count)]
    assert all(part.dropped == ("criterion.pos_weight",) for part in parts)
    for part, member in zip(parts, members, strict=True):
        assert_member(part, member)


def test_a_bare_list_of_modules_is_told_apart():
    parts = split(nn.ModuleList([net(0), net(1)]).state_dict())
    assert [part.fitted.stripped_prefix for part in parts] == ["0.", "1."]
    assert_member(parts[1], net(1))


def test_members_that_are_wrapped_once_more_are_told_apart():
    holder = Holder("models", [nn.Sequential(net(0)), nn.Sequential(net(1))])
    parts = split({f"model.{name}": tensor for name, tensor in holder.state_dict().items()})
    assert [part.fitted.stripped_prefix for part in parts] == ["model.models.0.0.", "model.models.1.0."]
    assert_member(parts[1], net(1))


def test_numbers_that_do_not_count_from_zero_are_no_ensemble():
    state = {f"models.{k}.{name}": tensor for k in (1, 2) for name, tensor in net(k).state_dict().items()}
    with pytest.raises(StackError, match=r"under 'models.1.' and under 'models.2.'"):
        split(state)


def test_a_stacked_state_is_cut_into_its_members():
    members = [net(seed) for seed in range(3)]
    stacked = ensexport.stack(members).state_dict()
    for state, prefix in ((stacked, None), ({f"model.{n}": t for n, t in stacked.items()}, "model.")):
        parts = split(state)
        assert [part.index for part in parts] == [0, 1, 2]
        assert {part.fitted.stripped_prefix for part in parts} == {prefix}
        for part, member in zip(parts, members, strict=True):
            assert_member(part, member)


def test_tied_names_may_be_missing_in_a_member_among_others():
    state = {f"models.{k}.emb.weight": torch.full((5, 3), float(k)) for k in range(2)}
    parts = split(state, Tied)
    assert [part.fitted.state["head.weight"][0, 0].item() for part in parts] == [0.0, 1.0]


def test_what_does_not_fit_at_all_is_left_for_the_comparison_with_the_architecture():
    state = {"other.weight": torch.ones(2)}
    (part,) = split(state)
    assert list(part.fitted.state) == ["other.weight"]
    (part,) = split(net(0, width=9).state_dict())
    assert part.fitted.state["head.weight"].shape == (2, 9)


def test_an_architecture_without_tensors_takes_a_file_as_it_is():
    (part,) = split({"a": torch.ones(1)}, nn.ReLU)
    assert list(part.fitted.state) == ["a"]


@pytest.mark.parametrize("prefix", ["ema.", "ema"])
def test_a_prefix_the_user_names_is_cut_and_the_rest_left_out(prefix):
    state = {"ema.w": torch.ones(1), "ema.b": torch.ones(2), "emax": torch.ones(3), "model.w": torch.ones(4)}
    kept, left_out = cut_prefix("'m.pt'", state, prefix)
    assert {name: tensor.numel() for name, tensor in kept.items()} == {"w": 1, "b": 2}
    assert left_out == ["emax", "model.w"]


def test_a_prefix_that_no_name_has_is_refused_with_those_there_are():
    with pytest.raises(StackError, match=r"no tensor of 'm.pt' has a name that begins with 'net\.': they begin with "
                                         r"'model\.', 'w'\.") as caught:  # fmt: skip
        cut_prefix("'m.pt'", {"model.w": torch.ones(1), "w": torch.ones(1)}, "net")
    assert "--strip-prefix" in caught.value.hint
