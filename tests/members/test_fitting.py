import pytest
import torch
from torch import nn

from ensexport.errors import StackError
from ensexport.members.architecture import resolve_architecture
from ensexport.members.fitting import check_fit, check_ties, fit_state, read_blueprint

LABEL = "member 2 (runs/s2.pt)"


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.emb.weight


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 3)


def blueprint(model):
    return read_blueprint(resolve_architecture(model))


def linear():
    return nn.Linear(2, 3)


def state(prefix="", **more):
    return {f"{prefix}weight": torch.zeros(3, 2), f"{prefix}bias": torch.zeros(3)} | more


def test_a_blueprint_holds_names_shapes_and_ties():
    found = blueprint(Tied)
    assert found.name == "Tied"
    assert found.shapes == {"emb.weight": (5, 3), "head.weight": (5, 3)}
    assert found.ties == (("emb.weight", "head.weight"),)
    assert blueprint(lambda: nn.LazyLinear(3)).shapes == {"weight": None, "bias": None}


def test_a_state_that_fits_is_left_alone():
    fitted = fit_state(state(), "module.", blueprint(linear))
    assert list(fitted.state) == ["weight", "bias"]
    assert fitted.stripped_prefix == "module."
    assert fitted.dropped == ()


def test_a_prefix_that_the_architecture_has_is_put_back():
    fitted = fit_state(state(), "module.", blueprint(Wrapped))
    assert list(fitted.state) == ["module.weight", "module.bias"]
    assert fitted.stripped_prefix is None


def test_an_averaged_model_loses_its_counter_and_its_prefix():
    saved = torch.optim.swa_utils.AveragedModel(nn.BatchNorm1d(2)).state_dict()
    fitted = fit_state(saved, None, blueprint(lambda: nn.BatchNorm1d(2)))
    assert list(fitted.state) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert fitted.stripped_prefix == "module."
    assert fitted.dropped == ("n_averaged",)


def test_batch_counters_go_only_where_the_architecture_has_none():
    extra = state(**{"num_batches_tracked": torch.tensor(3), "bn.num_batches_tracked": torch.tensor(3)})
    fitted = fit_state(extra, None, blueprint(linear))
    assert list(fitted.state) == ["weight", "bias"]
    assert fitted.dropped == ("num_batches_tracked", "bn.num_batches_tracked")


def test_an_architecture_that_counts_averages_keeps_its_counter():
    found = blueprint(lambda: torch.optim.swa_utils.AveragedModel(linear()))
    saved = {"n_averaged": torch.tensor(1)} | state("module.")
    fitted = fit_state(saved, None, found)
    assert list(fitted.state) == list(saved)
    check_fit(LABEL, fitted.state, found)


def test_a_tied_name_that_was_left_out_is_filled_in():
    weight = torch.randn(5, 3)
    fitted = fit_state({"head.weight": weight}, None, blueprint(Tied))
    assert fitted.state["emb.weight"] is weight


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            state(extra=torch.zeros(2)),
            f"'extra' is missing in the architecture, in {LABEL} it has shape (2,)",
        ),
        ({"weight": torch.zeros(3, 2)}, f"'bias' is in the architecture (shape (3,)), missing in {LABEL}"),
        (
            state(bias=torch.zeros(4)),
            f"'bias': expected shape (3,) as in the architecture, got (4,) in {LABEL}",
        ),
    ],
    ids=["unexpected", "missing", "shape"],
)
def test_what_does_not_fit_is_named_with_both_values(given, text):
    with pytest.raises(StackError) as caught:
        check_fit(LABEL, given, blueprint(linear))
    assert "the checkpoints do not fit the architecture 'linear': " in str(caught.value)
    assert text in str(caught.value)
    assert "--model-args" in caught.value.hint


def test_five_misfits_are_shown_and_the_others_counted():
    with pytest.raises(StackError, match="; and 4 more") as caught:
        check_fit(LABEL, {str(n): torch.zeros(1) for n in range(7)}, blueprint(linear))
    assert caught.value.details["n_differences"] == 9


def test_another_dtype_and_an_unknown_shape_fit():
    check_fit(LABEL, {name: value.half() for name, value in state().items()}, blueprint(linear))
    check_fit(LABEL, state(), blueprint(lambda: nn.LazyLinear(3)))
    with pytest.raises(StackError, match=r"'bias' is in the architecture, missing"):
        check_fit(LABEL, {"weight": torch.zeros(3, 2)}, blueprint(lambda: nn.LazyLinear(3)))


def test_tied_names_must_hold_equal_values():
    weight = torch.randn(5, 3)
    check_ties(LABEL, {"emb.weight": weight, "head.weight": weight.clone()}, blueprint(Tied))
    with pytest.raises(StackError, match=r"'emb.weight' and 'head.weight' are one tied tensor .* differ in member 2"):
        check_ties(LABEL, {"emb.weight": weight, "head.weight": weight + 1}, blueprint(Tied))


class Unsaved(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.register_buffer("table", make(), persistent=False)


class PlainTensor(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.inner = nn.Identity()
        self.inner.scale = make()


@pytest.mark.parametrize(("kind", "name"), [(Unsaved, "table"), (PlainTensor, "inner.scale")])
def test_a_random_tensor_that_no_checkpoint_holds_is_refused(kind, name):
    with pytest.raises(StackError, match=rf"cannot be reproduced: '{name}' of '.*' is in no state dict") as caught:
        blueprint(lambda: kind(lambda: torch.randn(3)))
    assert caught.value.exit_code == 4
    assert blueprint(lambda: kind(lambda: torch.arange(3))).shapes == {}


def test_an_unsaved_tensor_that_only_some_builds_have_is_refused():
    makes = iter([lambda: torch.zeros(1), lambda: None])
    with pytest.raises(StackError, match="'table'"):
        blueprint(lambda: Unsaved(next(makes)))
