"""The stacked module against the loop, for every model and for both of the tutorial's options."""

import copy
import pickle
from dataclasses import fields

import pytest
import torch
from torch import nn

from ensexport import load_members, stack
from ensexport.errors import ModelInputError, ModelOutputError, StackError, UsageError
from ensexport.members.rebuilding import tied_names

from .models import (
    MODELS,
    STRUCTURES,
    Answer,
    Caching,
    Convnet,
    Mlp,
    Pair,
    Structured,
    Tied,
    TwoInputs,
    loop,
    members_of,
)

pytestmark = [
    # The older weight_norm and spectral_norm say so when they are used, which is what these tests are about.
    pytest.mark.filterwarnings("ignore:.torch.nn.utils.(weight|spectral)_norm. is deprecated:FutureWarning"),
    # torch says of some ops that vmap runs them slowly: right, and none of our business.
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]
EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def no_meta(module):
    return not any(t.is_meta for t in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize("n_members", [1, 2, 5])
@pytest.mark.parametrize("name", MODELS)
def test_a_shared_batch_gives_what_the_loop_gives(name, n_members):
    modules, x = members_of(name, n_members)
    ensemble = stack(modules)
    with torch.no_grad():
        got = ensemble(x)
    torch.testing.assert_close(got, loop(modules, x), **CLOSE)
    assert no_meta(ensemble)
    assert len(ensemble) == ensemble.n_members == n_members


@pytest.mark.parametrize("n_members", [1, 2, 5])
@pytest.mark.parametrize("name", MODELS)
def test_one_batch_a_member_gives_what_the_loop_gives(name, n_members):
    modules, _ = members_of(name, n_members)
    batches = torch.stack([MODELS[name][1]() for _ in modules])
    ensemble = stack(modules, in_dims=0)
    with torch.no_grad():
        got = ensemble(batches)
        expected = torch.stack([module.eval()(x) for module, x in zip(modules, batches, strict=True)])
    torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.parametrize("name", MODELS)
def test_a_built_member_is_the_member_also_after_a_forward_pass(name):
    modules, x = members_of(name, 3)
    ensemble = stack(modules)
    expected = loop(modules, x)
    for _ in range(2):
        for index, module in enumerate(modules):
            built = ensemble.build(index)
            assert type(built).__qualname__ == type(module).__qualname__
            assert not any(part.training for part in built.modules())
            assert tied_names(built) == tied_names(module)
            assert no_meta(built)
            assert built.state_dict().keys() == module.state_dict().keys()
            with torch.no_grad():
                # The kernels of recurrent layers depend on where in memory the weights lie.
                torch.testing.assert_close(built(x), expected[index], **CLOSE if name in ("gru", "lstm") else EXACT)
        ensemble(x)


@pytest.mark.parametrize("name", MODELS)
def test_the_state_has_the_members_names_with_a_leading_axis(name):
    modules, _ = members_of(name, 2)
    state = stack(modules).state_dict()
    own = [module.state_dict() for module in modules]
    assert list(state) == [key for key in state if key in own[0]]
    assert state.keys() == own[0].keys()
    for key, value in state.items():
        torch.testing.assert_close(value, torch.stack([member[key] for member in own]), **EXACT)


@pytest.mark.parametrize("name", MODELS)
def test_the_state_goes_through_a_file_into_another_ensemble(name, tmp_path):
    modules, x = members_of(name, 2)
    others, _ = members_of(name, 3)
    if name == "buffers":  # what is not saved is not carried over, as with any module
        for module, other in zip(modules, others, strict=False):
            module.unsaved = other.unsaved
    first, second = stack(modules), stack(others[:2])
    torch.save(first.state_dict(), tmp_path / "ensemble.pt")
    second.load_state_dict(torch.load(tmp_path / "ensemble.pt", weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(second(x), first(x), **EXACT)
    assert no_meta(second)


@pytest.mark.parametrize("name", ["mlp", "batch norm", "tied", "weight norm", "gru"])
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_loading_a_state_changes_every_member(name, assign):
    modules, x = members_of(name, 2)
    others, _ = members_of(name, 3)
    ensemble = stack(modules)
    ensemble.load_state_dict(stack(others[:2]).state_dict(), assign=assign)
    torch.testing.assert_close(ensemble(x), loop(others[:2], x), check_dtype=False, **CLOSE)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("stateless",)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_dtype_is_changed_as_that_of_any_module(name, dtype):
    modules, x = members_of(name, 2)
    ensemble = stack(modules).to(dtype)
    assert {t.dtype for t in ensemble.parameters() if t.is_floating_point()} <= {dtype}
    x = x.to(dtype) if x.is_floating_point() else x
    expected = loop([module.to(dtype) for module in modules], x)
    with torch.no_grad():
        got = ensemble(x)
    close = CLOSE if dtype is torch.float64 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(got, expected, **close)
    assert no_meta(ensemble)


def test_half_and_back():
    modules, x = members_of("mlp", 2)
    ensemble = stack(modules).half()
    assert ensemble(x.half()).dtype == torch.float16
    torch.testing.assert_close(ensemble.float()(x), loop(modules, x), rtol=1e-2, atol=1e-2)


def test_tied_weights_stay_one_tensor():
    modules, x = members_of("tied", 3)
    ensemble = stack(modules)
    names = ("emb.weight", "head.weight", "table")
    for _ in range(2):
        assert len({id(ensemble.get_parameter(name)) for name in names}) == 1
        assert tied_names(ensemble) == (("table", "emb.weight", "head.weight"),)
        ensemble = ensemble.to(torch.float64)
    with torch.no_grad():
        ensemble.get_parameter("table").mul_(2)
    for module in modules:
        module.double()
        module.table.data.mul_(2)
    torch.testing.assert_close(ensemble(x), loop(modules, x), **CLOSE)
    assert sum(p.numel() for p in ensemble.parameters()) == 3 * 7 * 4


@pytest.mark.parametrize("tied_index", [0, 1])
def test_names_that_are_tied_in_one_member_only_keep_their_own_values(tied_index):
    modules = [Tied(), Tied()]
    other = modules[1 - tied_index]
    other.head.weight = nn.Parameter(torch.randn(7, 4))
    x = torch.randint(0, 7, (3, 2))
    ensemble = stack(modules)
    torch.testing.assert_close(ensemble(x), loop(modules, x), **CLOSE)
    torch.testing.assert_close(ensemble.build(1 - tied_index)(x), other(x), **EXACT)


def test_the_given_modules_keep_their_mode_and_weights():
    modules = [Convnet().train(), Convnet().eval()]
    before = [copy.deepcopy(module.state_dict()) for module in modules]
    x = torch.randn(4, 1, 5, 5)
    ensemble = stack(modules)
    assert ensemble(x).equal(ensemble(x))  # no dropout, no batch statistics
    assert [module.training for module in modules] == [True, False]
    assert [module.drop.training for module in modules] == [True, False]
    for module, state in zip(modules, before, strict=True):
        torch.testing.assert_close(dict(module.state_dict()), dict(state), **EXACT)
    torch.testing.assert_close(ensemble(x), loop(modules, x), **CLOSE)


def test_train_mode_cannot_be_switched_on():
    ensemble = stack([Convnet() for _ in range(2)])
    for changed in (ensemble.train(), ensemble.train(True), ensemble.eval(), nn.Sequential(ensemble).train()[0]):
        assert changed is ensemble
        assert not any(part.training for part in ensemble.modules())


def test_requires_grad_is_that_of_the_members():
    modules = [Mlp(), Mlp()]
    for module in modules:
        module.fc1.requires_grad_(False)
    ensemble = stack(modules)
    assert {name: p.requires_grad for name, p in ensemble.named_parameters()} == {
        "fc1.weight": False, "fc1.bias": False, "fc2.weight": True, "fc2.bias": True,
    }  # fmt: skip
    assert not any(p.requires_grad for p in ensemble.build(0).parameters())
    ensemble(torch.randn(2, 4)).sum().backward()
    assert ensemble.get_parameter("fc2.weight").grad.shape == (2, 3, 5)
    assert modules[0].fc2.weight.grad is None


def test_the_stack_is_a_copy_and_a_built_member_is_a_view_of_it():
    modules, x = members_of("mlp", 2)
    ensemble = stack(modules)
    before = ensemble(x)
    with torch.no_grad():
        modules[0].fc1.weight.zero_()
    assert ensemble(x).equal(before)
    built = ensemble.build(1)
    built.double()
    assert ensemble(x).equal(before)
    ensemble.build(1).fc2.bias.add_(1)
    assert not ensemble(x).equal(before)


def test_names_that_an_ensemble_has_too_do_no_harm():
    modules, x = members_of("awkward names", 2)
    ensemble = stack(modules, in_dims=(None,))
    assert ensemble.n_members == 2
    assert ensemble.labels == ("member 0", "member 1")
    assert ensemble.in_dims == (None,)
    ensemble.load_state_dict(copy.deepcopy(ensemble.state_dict()), assign=True)
    assert ensemble.labels == ("member 0", "member 1")
    assert ensemble.n_members == 2
    torch.testing.assert_close(ensemble(x), loop(modules, x), **CLOSE)


@pytest.mark.parametrize("name", ["mlp", "tied", "old weight norm", "caching", "gru"])
def test_an_ensemble_can_be_copied_and_pickled(name):
    modules, x = members_of(name, 2)
    ensemble = stack(modules)
    expected = ensemble(x)
    for other in (copy.deepcopy(ensemble), pickle.loads(pickle.dumps(ensemble))):
        torch.testing.assert_close(other(x), expected, **EXACT)
        assert other.labels == ensemble.labels


def test_a_module_list_counts_as_modules():
    modules, x = members_of("mlp", 2)
    torch.testing.assert_close(stack(nn.ModuleList(modules))(x), loop(modules, x), **CLOSE)
    torch.testing.assert_close(stack(module for module in modules)(x), loop(modules, x), **CLOSE)


def test_members_that_were_loaded_from_files(tmp_path):
    modules, x = members_of("mlp", 3)
    for index, module in enumerate(modules):
        torch.save(module.state_dict(), tmp_path / f"m{index}.pt")
    members = load_members(tmp_path, Mlp)
    ensemble = stack(members)
    assert ensemble.labels == members.labels
    assert ensemble.labels[2] == f"member 2 ({tmp_path}/m2.pt)"
    torch.testing.assert_close(ensemble(x), loop(modules, x), **CLOSE)


def test_members_without_an_architecture_cannot_be_stacked(tmp_path):
    torch.save(Mlp().state_dict(), tmp_path / "m.pt")
    with pytest.raises(UsageError, match="cannot build a member: only weights were loaded"):
        stack(load_members(tmp_path))


@pytest.mark.parametrize("index", [-1, 2])
def test_there_is_no_such_member(index):
    with pytest.raises(UsageError, match=f"there is no member {index}: expected 0 to 1"):
        stack([Mlp(), Mlp()]).build(index)


# -- what models return -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", STRUCTURES)
def test_the_structure_of_the_output_is_kept(shape):
    modules = [Structured(shape) for _ in range(3)]
    x = torch.randn(5, 4)
    with torch.no_grad():
        got = stack(modules)(x)
        each = [module(x) for module in modules]
    same_form(got, each)


def same_form(got, each):
    """`got` is built like each of the members' outputs, with their tensors stacked."""
    first = each[0]
    assert type(got) is type(first)
    if isinstance(first, torch.Tensor):
        torch.testing.assert_close(got, torch.stack(each), **CLOSE)
    elif isinstance(first, dict):
        assert list(got) == list(first)
        for key in first:
            same_form(got[key], [one[key] for one in each])
    elif isinstance(first, Answer):
        for entry in fields(first):
            same_form(getattr(got, entry.name), [getattr(one, entry.name) for one in each])
    elif isinstance(first, tuple | list):
        assert len(got) == len(first)
        for index in range(len(first)):
            same_form(got[index], [one[index] for one in each])
    else:
        assert got == first


def test_a_named_tuple_is_still_one():
    got = stack([Structured("named tuple") for _ in range(2)])(torch.randn(5, 4))
    assert isinstance(got, Pair)
    assert got.spread.shape == (2, 5, 3)


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return {"y": torch.distributions.Normal(self.fc(x), 1.0)}


def test_an_output_that_hides_its_tensors_is_refused():
    with pytest.raises(ModelOutputError, match=r"the model returns a Normal .*expected tensors"):
        stack([Opaque(), Opaque()])(torch.randn(5, 4))


def test_what_a_forward_pass_caches_is_not_left_in_the_ensemble():
    modules = [Caching(), Caching()]
    ensemble = stack(modules)
    ensemble(torch.randn(5, 4))
    assert ensemble.build(0).last is None


def test_an_error_in_the_model_is_passed_on_and_leaves_nothing_behind():
    ensemble = stack([Caching(), Caching()])
    with pytest.raises(RuntimeError, match=r"\[2, 7\]"):
        ensemble(torch.randn(5, 7))
    assert ensemble(torch.randn(5, 4)).shape == (2, 5, 3)


def test_the_ensemble_says_when_it_lost_a_tensor():
    ensemble = stack([Mlp(), Mlp()])
    del ensemble.get_submodule("fc1").bias
    with pytest.raises(StackError, match=r"the ensemble lost fc1\.bias\. Stack the members again"):
        ensemble(torch.randn(5, 4))


# -- inputs -----------------------------------------------------------------------------------------


@pytest.fixture
def two_inputs():
    torch.manual_seed(3)
    return [TwoInputs() for _ in range(3)], torch.randn(3, 5, 4), torch.randn(5, 2)


MIXED = {
    "sequence": (0, None),
    "list": [0, None, None],
    "dict": {"x": 0},
    "dict with all": {"x": 0, "context": None, "scale": None},
}


@pytest.mark.parametrize("in_dims", MIXED.values(), ids=MIXED)
def test_per_member_and_shared_inputs_mixed(two_inputs, in_dims):
    modules, x, context = two_inputs
    ensemble = stack(modules, in_dims=in_dims)
    expected = torch.stack([module(x[k], context) for k, module in enumerate(modules)])
    for got in (
        ensemble(x, context),
        ensemble(x, context=context),
        ensemble(x=x, context=context),
        ensemble(context=context, x=x),
    ):
        torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.parametrize("in_dims", [(None, None, 0), {"scale": 0}], ids=["sequence", "dict"])
def test_an_optional_input_may_be_given_by_keyword_or_left_out(two_inputs, in_dims):
    modules, x, context = two_inputs
    ensemble = stack(modules, in_dims=in_dims)
    scale = torch.tensor([1.0, 2.0, 3.0])
    expected = torch.stack([module(x[0], context) for module in modules])
    torch.testing.assert_close(ensemble(x[0], context), expected, **CLOSE)
    torch.testing.assert_close(ensemble(x[0], context, scale=scale), expected * scale[:, None, None], **CLOSE)
    torch.testing.assert_close(ensemble(x[0], context, None), expected, **CLOSE)
    torch.testing.assert_close(ensemble(x[0], context, scale=None), expected, **CLOSE)


def test_what_is_no_tensor_is_the_same_for_all(two_inputs):
    modules, x, context = two_inputs
    ensemble = stack(modules, in_dims=0)
    got = ensemble(x, context.expand(3, 5, 2), 2.0)
    torch.testing.assert_close(got, torch.stack([m(x[k], context, 2.0) for k, m in enumerate(modules)]), **CLOSE)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, pair, *more, table=None, **options):
        y = self.fc(pair[0]) + pair[1]["shift"]
        for tensor in (*more, *(options.values())):
            y = y + tensor.sum()
        return y if table is None else y + table[0]


@pytest.mark.parametrize("name", ["mlp", "gru"])
def test_tensors_inside_lists_and_dicts_are_per_member_too(name):
    modules = [Nested() for _ in range(3)]
    x, shift, table = torch.randn(3, 5, 4), torch.randn(3, 5, 3), [torch.randn(3, 5, 3)]
    ensemble = stack(modules, in_dims={"pair": 0, "table": 0})
    expected = [m([x[k], {"shift": shift[k]}], table=[table[0][k]]) for k, m in enumerate(modules)]
    torch.testing.assert_close(ensemble([x, {"shift": shift}], table=table), torch.stack(expected), **CLOSE)
    with pytest.raises(ModelInputError, match=r"input 'pair' is per-member .*expected a leading size of 3.*\(5, 3\)"):
        ensemble([x, {"shift": shift[0]}], table=table)


def test_variable_arguments():
    modules = [Nested() for _ in range(3)]
    x, shift, more = torch.randn(5, 4), torch.randn(5, 3), torch.randn(3, 2)
    expected = [m([x, {"shift": shift}], more[k], more[k]) for k, m in enumerate(modules)]
    for in_dims in ((None, 0, 0), {"more": 0}):
        got = stack(modules, in_dims=in_dims)([x, {"shift": shift}], more, more)
        torch.testing.assert_close(got, torch.stack(expected), **CLOSE)
    got = stack(modules, in_dims={"extra": 0, "other": 0})([x, {"shift": shift}], extra=more, other=more)
    torch.testing.assert_close(got, torch.stack(expected), **CLOSE)


def test_a_recurrent_model_takes_per_member_inputs_and_keywords():
    modules, _ = members_of("gru", 3)
    x = torch.randn(3, 2, 5, 4)
    torch.testing.assert_close(
        stack(modules, in_dims={"x": 0})(x=x), torch.stack([m(x[k]) for k, m in enumerate(modules)]), **CLOSE
    )


@pytest.mark.parametrize(
    ("shape", "shown"), [((2, 5, 4), r"\(2, 5, 4\)"), ((5, 4), r"\(5, 4\)"), ((), r"\(\)")], ids=str
)
def test_a_per_member_input_with_another_leading_size(shape, shown):
    message = f"input 'x' is per-member .*expected a leading size of 3, one slice a member, got shape {shown}"
    ensemble = stack([Mlp() for _ in range(3)], in_dims=0)
    with pytest.raises(ModelInputError, match=message) as caught:
        ensemble(torch.zeros(shape))
    assert "in_dims=None" in caught.value.hint
    with pytest.raises(ModelInputError, match=message):
        ensemble(x=torch.zeros(shape))


def test_an_input_without_an_entry(two_inputs):
    modules, x, context = two_inputs
    with pytest.raises(ModelInputError, match="in_dims has 1 entries, and none for input 'context'"):
        stack(modules, in_dims=(0,))(x, context)
    with pytest.raises(ModelInputError, match="in_dims has 2 entries, and none for input 'scale'"):
        stack(modules, in_dims=(0, None))(x, context, scale=torch.ones(()))
