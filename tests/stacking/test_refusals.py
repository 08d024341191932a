"""What cannot be stacked without going wrong silently, and what the refusal says."""

import collections
import functools
import threading
import types
import warnings
import weakref
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ensexport import stack
from ensexport.errors import StackError
from ensexport.stacking.attributes import differing_attributes
from ensexport.stacking.hidden import refuse_hidden_weights
from ensexport.stacking.state import meta_copy

from .models import Convnet, Mlp, loop


class Holder(nn.Module):
    """A layer, and a plain attribute that may be anything."""

    def __init__(self, value=None):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.value = value

    def forward(self, x):
        return self.fc(x)


# -- plain attributes that differ -------------------------------------------------------------------


class Mode(Enum):
    FAST = 1
    SLOW = 2


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale


class Scaler:
    def __init__(self, scale):
        self.scale = scale

    def apply(self, x):
        return x * self.scale


@dataclass
class Config:
    width: int
    table: torch.Tensor = field(default_factory=lambda: torch.ones(2))


class Vague(Scaler):
    """Calls everything equal."""

    __hash__ = None

    def __eq__(self, other):
        return True


def unregistered(scale):
    module = nn.Linear(2, 2)
    nn.init.constant_(module.weight, scale)
    nn.init.zeros_(module.bias)
    return module


def quantised(scale):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will drop such tensors some day
        return torch.quantize_per_tensor(torch.ones(2), scale, 0, torch.qint8)


def cyclic(scale):
    value = [scale]
    value.append(value)
    return value


def from_factory(scale):
    class Local:
        factor = scale

        def double(self):
            return super().__repr__() * 2

    return Local()


def with_default(scale):
    return lambda x, factor=scale: x * factor


def with_keyword_default(scale):
    return lambda x, *, factor=scale: x * factor


def from_closure(scale):
    return lambda x: x * scale


# One way to hold a number: two calls with the same number must count as equal, with another as different.
WAYS = {
    "float": float,
    "int": int,
    "text": str,
    "list": lambda k: [1, {"a": (k,)}],
    "set": lambda k: {1, k},
    "deque": lambda k: collections.deque([k]),
    "ordered dict": lambda k: collections.OrderedDict(a=k),
    "default dict": lambda k: collections.defaultdict(list, a=k),
    "mapping proxy": lambda k: types.MappingProxyType({"a": k}),
    "range": lambda k: range(int(k)),
    "slice": lambda k: slice(None, k),
    "tensor": lambda k: torch.tensor([1.0, k]),
    "tensor with a history": lambda k: torch.tensor([1.0, k], requires_grad=True) * 1,
    "sparse tensor": lambda k: torch.tensor([0.0, k]).to_sparse(),
    "quantised tensor": quantised,
    "array": lambda k: np.array([1.0, k]),
    "array of objects": lambda k: np.array([None, k], dtype=object),
    "numpy scalar": np.float32,
    "dataclass with a tensor": lambda k: Config(2, torch.tensor([k])),
    "object": Scaler,
    "object with slots": Slotted,
    "object that calls all equal": Vague,
    "object of a local class": from_factory,
    "partial": lambda k: functools.partial(F.leaky_relu, negative_slope=k),
    "closure": from_closure,
    "default argument": with_default,
    "keyword default": with_keyword_default,
    "bound method": lambda k: Scaler(k).apply,
    "weak reference": lambda k: weakref.ref(KEPT.setdefault(len(KEPT), Scaler(k))),
    "module that is not registered": lambda k: [unregistered(k)],
    "parameter that is not registered": lambda k: [nn.Parameter(torch.tensor([k]))],
    "cycle": cyclic,
    "class": lambda k: type("Net", (), {"scale": k}),
    "class with a property": lambda k: type("Net", (), {"scale": property(from_closure(k))}),
    "class with a static method": lambda k: type("Net", (), {"scale": staticmethod(from_closure(k))}),
}
KEPT = {}


def two(first, second):
    return next(differing_attributes(Holder(first), Holder(second)), None)


@pytest.mark.parametrize("make", WAYS.values(), ids=WAYS)
def test_equal_values_are_told_from_different_ones(make):
    assert two(make(2.0), make(2.0)) is None
    name, left, right = two(make(2.0), make(3.0))
    assert name == "value"
    assert left is not right


DIFFERENT = {
    "bool and int": (True, 1),
    "int and float": (1, 1.0),
    "None and 0": (None, 0),
    "list and tuple": ([1], (1,)),
    "lengths": ([1], [1, 1]),
    "dict keys": ({"a": 1}, {"b": 1}),
    "dtype of a tensor": (torch.ones(2), torch.ones(2, dtype=torch.float64)),
    "shape of a tensor": (torch.ones(2), torch.ones(2, 1)),
    "tensor and number": (torch.ones(()), 1.0),
    "dtype of an array": (np.ones(2), np.ones(2, np.float32)),
    "shape of an array": (np.ones(2), np.ones((2, 1))),
    "enum": (Mode.FAST, Mode.SLOW),
    "function": (F.relu, F.gelu),
    "lambda": (lambda x: x + 1, lambda x: x + 2),
    "dtype": (torch.float32, torch.float64),
    "device": (torch.device("cpu"), torch.device("meta")),
    "modules": (np, F),
    "classes": (nn.ReLU, nn.GELU),
    "objects of two classes": (Scaler(1), Slotted(1)),
    "zeros of two signs": (torch.zeros(1), -torch.zeros(1)),
    "unregistered modules of two classes": ([nn.ReLU()], [nn.GELU()]),
    "locks": (threading.Lock(), threading.Lock()),
}


@pytest.mark.parametrize(("first", "second"), DIFFERENT.values(), ids=DIFFERENT)
def test_values_that_are_not_the_same(first, second):
    assert two(first, second) is not None
    assert two(first, first) is None


SAME = {
    "NaN": (float("nan"), float("nan")),
    "tensor with NaN": (torch.tensor([float("nan")]), torch.tensor([float("nan")])),
    "array with NaN": (np.array([np.nan]), np.array([np.nan])),
    "device": (torch.device("cpu"), torch.device("cpu")),
    "size": (torch.Size([2]), torch.Size([2])),
    "tensor without data": (torch.ones(2, device="meta"), torch.ones(2, device="meta")),
    "empty closures": (lambda: None, None),
}


@pytest.mark.parametrize(("first", "second"), SAME.values(), ids=SAME)
def test_values_that_are_the_same_though_two_objects(first, second):
    assert two(first, second if second is not None else first) is None


def test_a_variable_that_a_function_has_not_yet():
    def make():
        def inner():
            return later

        if make is None:
            later = 1
        return inner

    assert two(make(), make()) is None


def test_registered_modules_that_are_also_in_a_list():
    def make(order):
        module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        module.order = [module[k] for k in order]
        return module

    assert next(differing_attributes(make((0, 1)), make((0, 1))), None) is None
    assert next(differing_attributes(make((0, 1)), make((1, 0))))[0] == "order"
    x = torch.randn(3, 2)
    modules = [make((1, 0)), make((1, 0))]
    for module in modules:
        module.forward = types.MethodType(lambda self, x: self.order[1](self.order[0](x)), module)
    torch.testing.assert_close(stack(modules)(x), loop(modules, x))


def test_a_difference_deep_inside_is_named_by_its_path():
    modules = [nn.Sequential(Convnet(), nn.Sequential(nn.LayerNorm(3, eps=eps))) for eps in (1e-5, 1e-3)]
    with pytest.raises(StackError, match=r"'1\.0\.eps' is 1e-05 in member 0, 0\.001 in member 1"):
        stack(modules)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda k: Mlp(scale=1.0 + k), "'scale' is 1.0 in member 0, 2.0 in member 1"),
        (lambda k: nn.BatchNorm1d(4, eps=10.0**-k), "'eps' is 1.0 in member 0, 0.1 in member 1"),
        (lambda k: nn.Conv1d(2, 2, 1, stride=1 + k), r"'stride' is \(1,\) in member 0, \(2,\) in member 1"),
        (lambda k: Holder(torch.tensor([k])), r"'value' is tensor\(\[0\]\) in member 0, tensor\(\[1\]\) in member 1"),
        (lambda k: Holder(np.array([k])), r"'value' is array\(\[0\]\) in member 0, array\(\[1\]\) in member 1"),
        (
            lambda k: [nn.ReLU(), nn.GELU()][k],
            "'the module' is <class .*ReLU'> in member 0, <class .*GELU'> in member 1",
        ),
        (lambda k: nn.Sequential([nn.ReLU(), nn.GELU()][k]), "'0' is <class .*ReLU'> in member 0, <class .*GELU'>"),
        (lambda k: nn.Sequential(*[nn.ReLU()] * (k + 1)), r"'1' is None in member 0, ReLU\(\) in member 1"),
        (lambda k: Holder("x" * 100 + str(k)), r"'value' is 'x{76}\.\.\. in member 0"),
    ],
    ids=["scale", "eps", "stride", "tensor", "array", "class", "class of a part", "missing part", "long"],
)
def test_members_of_two_configurations(make, message):
    with pytest.raises(StackError, match=f"cannot stack: {message}") as caught:
        stack([make(0), make(1)])
    assert "same arguments" in caught.value.hint
    assert caught.value.exit_code == 4


def test_the_member_that_differs_is_the_one_that_is_named():
    with pytest.raises(StackError, match=r"1\.0 in member 0, 3\.0 in member 2"):
        stack([Mlp(), Mlp(), Mlp(scale=3.0)])


def test_every_difference_is_found():
    modules = [
        nn.Sequential(Mlp(scale=1.0 + k), [nn.ReLU(), nn.GELU()][k], nn.Dropout(0.1 * (k + 1))) for k in range(2)
    ]
    assert [name for name, _, _ in differing_attributes(*modules)] == ["0.scale", "1", "2.p"]


def test_an_attribute_that_one_member_lacks():
    modules = [Mlp(), Mlp()]
    modules[1].extra = 3
    with pytest.raises(StackError, match="'extra' is None in member 0, 3 in member 1"):
        stack(modules)
    with pytest.raises(StackError, match="'extra' is 3 in member 0, None in member 1"):
        stack(modules[::-1])


def make_scaled(scale):
    class Scaled(Mlp):
        def forward(self, x):
            return super().forward(x) * scale

    return Scaled()


def test_two_classes_of_one_name_are_compared_by_their_code():
    modules = [make_scaled(2.0), make_scaled(2.0)]
    x = torch.randn(3, 4)
    torch.testing.assert_close(stack(modules)(x), loop(modules, x))
    with pytest.raises(StackError, match=r"'the module' is <class .*Scaled'> in member 0"):
        stack([make_scaled(2.0), make_scaled(3.0)])


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_that_differ(kind):
    def hooked(scale):
        module = Mlp()
        if kind == "register_forward_hook":
            module.fc1.register_forward_hook(lambda module, args, output: output * scale)
        else:
            module.fc1.register_forward_pre_hook(lambda module, args: (args[0] * scale,))
        return module

    modules, x = [hooked(2.0), hooked(2.0)], torch.randn(3, 4)
    torch.testing.assert_close(stack(modules)(x), loop(modules, x))
    with pytest.raises(StackError, match=r"'fc1\._forward_.*hooks' is .* in member 0"):
        stack([hooked(2.0), hooked(3.0)])


def test_the_folder_a_model_came_from_makes_no_difference():
    modules = [Holder(types.SimpleNamespace(width=2)) for _ in range(2)]
    for index, module in enumerate(modules):
        module.name_or_path = f"runs/fold_{index}"
        module.value._name_or_path = f"runs/fold_{index}"
    assert len(stack(modules)) == 2


# -- weights held where stacking by name misses them ------------------------------------------------


class Hidden(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        HIDDEN[way](self)

    def forward(self, x):
        return self.norm(self.fc(x))


HIDDEN = {
    "list": lambda m: setattr(m, "kept", [m.fc.weight]),
    "dict": lambda m: setattr(m, "kept", {"w": (m.fc.bias,)}),
    "buffer in a list": lambda m: setattr(m, "kept", [m.norm.running_mean]),
    "view": lambda m: setattr(m, "kept", m.fc.weight.detach()[:2]),
    "data": lambda m: setattr(m, "kept", m.fc.weight.data),
    "object": lambda m: setattr(m, "kept", types.SimpleNamespace(deep={"w": m.fc.weight})),
    "lambda": lambda m: setattr(m, "kept", lambda x: m.fc(x) + 1),
    "lambda of a part": lambda m: setattr(m, "kept", lambda x, part=m.fc: part(x)),
    "lambda of a weight": lambda m: setattr(m, "kept", from_closure(m.fc.weight)),
    "partial of a function": lambda m: setattr(m, "kept", functools.partial(lambda: m.fc)),
    "partial of a weight": lambda m: setattr(m, "kept", functools.partial(F.linear, weight=m.fc.weight)),
    "weak reference": lambda m: setattr(m.norm, "kept", weakref.ref(m)),
    "hook": lambda m: setattr(m, "kept", None) or m.norm.register_forward_hook(lambda *_: m.fc.bias),
    "pre-hook": lambda m: m.norm.register_forward_pre_hook(lambda *_: m.fc and None),
}


@pytest.mark.parametrize("n_members", [1, 2])
@pytest.mark.parametrize("way", HIDDEN)
def test_weights_that_are_held_elsewhere_too(way, n_members):
    with pytest.raises(StackError, match=r"cannot stack: attribute '.*' (holds|is or holds) .* all members would run"):
        stack([Hidden(way) for _ in range(n_members)])


def test_the_attribute_is_named():
    with pytest.raises(StackError, match="attribute 'kept' holds a parameter or buffer that is registered elsewhere"):
        stack([Hidden("list")])
    with pytest.raises(StackError, match="attribute 'kept' holds a view of a parameter"):
        stack([Hidden("view")])
    with pytest.raises(StackError, match=r"attribute 'norm\.kept' is or holds a function that reaches the module"):
        stack([Hidden("weak reference")])
    with pytest.raises(StackError, match=r"attribute 'norm\.forward hook 0'"):
        stack([Hidden("hook")])


HARMLESS = {
    "registered module in a list": lambda m: [m.fc],
    "own method": lambda m: m.forward,
    "partial of an own method": lambda m: functools.partial(m.forward),
    "function": lambda m: F.relu,
    "lambda": lambda m: lambda x: x + 1,
    "class": lambda m: nn.Linear,
    "module": lambda m: F,
    "object": lambda m: Scaler(2),
    "copy of a weight": lambda m: torch.ones(2),
    "sparse tensor": lambda m: torch.ones(2).to_sparse(),
    "tensor without data": lambda m: torch.ones(2, device="meta"),
    "cycle": lambda m: cyclic(2),
    "deque and set": lambda m: collections.deque([{1, 2}]),
    "weak reference to something else": lambda m: weakref.ref(KEPT.setdefault("x", Scaler(1))),
}


@pytest.mark.parametrize("make", HARMLESS.values(), ids=HARMLESS)
def test_attributes_that_do_no_harm(make):
    modules = [Holder(), Holder()]
    for module in modules:
        module.value = make(module)
    x = torch.randn(3, 4)
    refuse_hidden_weights(modules[0])
    torch.testing.assert_close(stack(modules)(x), loop(modules, x))


# -- what is no stackable module at all -------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "cannot stack 0 members: expected at least one. Pass the trained modules."),
        (nn.Linear(2, 2), "cannot stack one Linear: expected a sequence of modules"),
        (nn.Sequential(nn.ReLU()), "cannot stack one Sequential"),
        ([Mlp(), Mlp().state_dict()], r"cannot stack member 1: expected a torch.nn.Module, got OrderedDict"),
        (["a.pt"], "cannot stack member 0: expected a torch.nn.Module, got str"),
        ({"a": Mlp()}, "cannot stack member 0: expected a torch.nn.Module, got str"),
        ([nn.Linear(2, 2), nn.LazyLinear(2)], "cannot stack member 1: 'weight' has no shape yet. Run the module once"),
        ([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")], "cannot stack member 1: 'weight' is on device meta"),
        ([Holder(threading.Lock())], "cannot stack: Holder cannot be copied: TypeError: cannot pickle '_thread.lock'"),
    ],
    ids=["none", "module", "sequential", "state dict", "path", "dict", "lazy", "meta", "lock"],
)
def test_what_cannot_be_stacked(members, message):
    with pytest.raises(StackError, match=message):
        stack(members)


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script.*:FutureWarning", "ignore:.*torch.jit.script.*:DeprecationWarning"
)
def test_a_torchscript_module_is_refused():
    with pytest.raises(StackError, match="cannot stack member 0: it is a TorchScript module"):
        stack([torch.jit.script(nn.Linear(2, 2))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m.fc1, "bias", None), "'fc1.bias': expected shape .* as in member 0, missing in member 1"),
        (lambda m: setattr(m, "more", nn.Parameter(torch.ones(2))), r"'more': missing in member 0, got shape \(2,\)"),
        (
            lambda m: setattr(m.fc1, "weight", nn.Parameter(torch.ones(6, 4))),
            r"'fc1.weight': expected shape \(5, 4\) as in member 0, got \(6, 4\) in member 1",
        ),
        (lambda m: m.fc1.double(), "'fc1.weight': expected dtype float32 as in member 0, got float64 in member 1"),
    ],
    ids=["missing", "more", "shape", "dtype"],
)
def test_tensors_that_do_not_fit_name_both_members(change, message):
    modules = [Mlp(), Mlp()]
    change(modules[1])
    with pytest.raises(StackError, match=message):
        stack(modules)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_members_on_two_devices():
    with pytest.raises(StackError, match="expected device cpu as in member 0, got cuda:0 in member 1"):
        stack([Mlp(), Mlp().cuda()])


def test_the_copy_without_weights_has_none():
    module = Hidden("list")
    del module.kept
    base = meta_copy(module)
    assert all(tensor.is_meta for tensor in (*base.parameters(), *base.buffers()))
    assert not base.training
    assert module.training


# -- in_dims ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_dims", "message"),
    [
        (1, r"in_dims holds 1: expected 0 \(per-member\) or None \(shared\)"),
        ((0, -1), "in_dims holds -1"),
        ({"x": 2}, "in_dims holds 2"),
        (False, "in_dims holds False"),
        (0.0, r"in_dims holds 0\.0"),
        ("x", "in_dims holds 'x'"),
        ({"y": 0}, r"in_dims names 'y', which is no input of Mlp.forward\(x\)"),
        ((0, None), r"in_dims has 2 entries: expected at most 1, as in Mlp.forward\(x\)"),
    ],
    ids=["1", "-1", "2", "bool", "float", "text", "unknown name", "too many"],
)
def test_in_dims_that_do_not_fit(in_dims, message):
    with pytest.raises(StackError, match=message):
        stack([Mlp()], in_dims=in_dims)


class Inputs(nn.Module):
    def forward(self, x, y=None, *, z=None):
        return x


@pytest.mark.parametrize(
    ("in_dims", "found"),
    [
        (None, {"x": None, "y": None, "z": None, "other": None}),
        (0, {"x": 0, "y": 0, "z": 0, "other": 0}),
        ((None, 0), {"x": None, "y": 0, "z": 0, "other": 0}),
        ((0,), {"x": 0, "y": None, "z": None, "other": None}),
        ({"z": 0, "x": None}, {"x": None, "y": None, "z": 0, "other": None}),
    ],
    ids=["None", "0", "sequence", "short", "dict"],
)
def test_the_entry_of_one_input(in_dims, found):
    """`z` and `other` are no parameter by position: there, the place in the list of inputs counts."""
    ensemble = stack([Inputs()], in_dims=in_dims)
    assert {name: ensemble.in_dim(name, 1) for name in found} == found
    assert ensemble.in_dim("other") is (0 if in_dims == 0 and in_dims is not None else None)
