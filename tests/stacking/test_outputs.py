"""The contract names of a model's outputs, and structures that are taken apart and put together again."""

from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace

import pytest
import torch

from ensexport.errors import ModelOutputError
from ensexport.stacking.outputs import flatten_outputs, map_leaves

Pair = namedtuple("Pair", ["mean", "spread"])
A, B, C = (torch.full((2,), float(k)) for k in (1, 2, 3))


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: object = None


@dataclass(frozen=True)
class Frozen:
    logits: torch.Tensor
    count: int = field(init=False, default=3)


class Keyed(OrderedDict):
    """Like the outputs of transformers: a dict that refuses `update`, and whose entries are attributes too."""

    def update(self, *args, **kwargs):
        raise TypeError("update is not allowed")

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self.__dict__[key] = value


NAMES = {
    "a tensor": (A, ["output"]),
    "a tuple": ((A, B), ["output_0", "output_1"]),
    "a tuple of one": ((A,), ["output"]),
    "a list": ([A, B, C], ["output_0", "output_1", "output_2"]),
    "nested tuples": (((A, B), C), ["output_0", "output_1", "output_2"]),
    "a dict": ({"logits": A, "value": B}, ["logits", "value"]),
    "a dict out of order": ({"z": A, "a": B}, ["z", "a"]),
    "an ordered dict": (OrderedDict(z=A, a=B), ["z", "a"]),
    "keys that are no text": ({0: A, (1, 2): B}, ["0", "(1, 2)"]),
    "an empty key": ({"": A}, ["output"]),
    "a dataclass": (Answer(A, B), ["logits", "hidden"]),
    "a named tuple": (Pair(A, B), ["mean", "spread"]),
    "None in a tuple": ((None, A, None), ["output"]),
    "None in a dict": ({"a": None, "b": A}, ["b"]),
    "None in a dataclass": (Answer(A), ["logits"]),
    "a tuple in a dict": ({"h": (A, B), "y": C}, ["h_0", "h_1", "y"]),
    "a dict in a dict": ({"a": {"b": A, "c": B}}, ["a_b", "a_c"]),
    "dicts in a tuple": (({"a": A}, {"b": B}), ["a", "b"]),
    "the order is that of the model": ((A, {"y": B}, C), ["output_0", "y", "output_1"]),
    "one name in two places": (({"y": A}, B, {"y": C}), ["y_0", "output", "y_1"]),
    "a name that is taken": (({"output_0": A}, B, C), ["output_0", "output_0_", "output_1"]),
    "a name that will be taken": ((B, C, {"output_0": A}), ["output_0_", "output_1", "output_0"]),
    "a joined name that is taken": ({"a_b": A, "a": {"b": B}}, ["a_b_0", "a_b_1"]),
    "torch.max": (torch.ones(2, 3).max(1), ["output_0", "output_1"]),
    "a dataclass in a tuple": ((Answer(A, {"x": B}), C), ["logits", "hidden_x", "output"]),
}


@pytest.mark.parametrize(("value", "names"), NAMES.values(), ids=NAMES)
def test_every_tensor_has_its_name_in_order(value, names):
    assert list(flatten_outputs(value)) == names


def test_names_and_tensors_belong_together():
    flat = flatten_outputs((A, {"y": B}, C))
    assert flat["output_0"] is A
    assert flat["y"] is B
    assert flat["output_1"] is C


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3.5, r"the model returns a float \(3\.5\) as 'output': expected tensors"),
        ((A, "text"), r"the model returns a str \('text'\) as 'output'"),
        ({"a": {"n": 3}}, r"the model returns a int \(3\) as 'a_n'"),
        ({A}, "the model returns a set"),
        (SimpleNamespace(y=A), "the model returns a SimpleNamespace"),
        (Answer, "the model returns a type"),
        (torch.distributions.Normal(0.0, 1.0), r"the model returns a Normal .* as 'output'"),
    ],
    ids=["float", "text", "nested", "set", "namespace", "class", "distribution"],
)
def test_what_is_no_tensor_is_refused(value, message):
    with pytest.raises(ModelOutputError, match=message) as caught:
        flatten_outputs(value)
    assert "Return a tensor there, or None" in caught.value.hint


@pytest.mark.parametrize("value", [None, (), {}, [None, {"a": None}]], ids=["None", "tuple", "dict", "nested"])
def test_a_model_that_returns_nothing_is_refused(value):
    with pytest.raises(ModelOutputError, match="the model returns no tensor"):
        flatten_outputs(value)


def doubled(leaf):
    return leaf * 2 if isinstance(leaf, torch.Tensor) else leaf


SHAPES = {
    "tensor": A,
    "None": None,
    "tuple": (A, None, 3),
    "list": [A, [B]],
    "dict": {"a": A, 1: B},
    "ordered dict": OrderedDict([(1, A), ("b", B)]),
    "default dict": defaultdict(list, a=A),
    "dict subclass": Keyed(a=A),
    "named tuple": Pair(A, (B,)),
    "dataclass": Answer(A, {"x": B}),
    "frozen dataclass": Frozen(A),
    "torch.max": torch.ones(2, 3).max(1),
}


@pytest.mark.parametrize("value", SHAPES.values(), ids=SHAPES)
def test_structures_are_kept_and_the_original_is_not_changed(value):
    before = map_leaves(value, lambda leaf: leaf)
    mapped = map_leaves(value, doubled)
    assert type(mapped) is type(value)
    assert str(mapped) == str(map_leaves(before, doubled))
    assert str(value) == str(before)
    assert str(mapped) != str(value) or value is None


def test_details_of_containers():
    mapped = map_leaves(SHAPES["default dict"], doubled)
    assert mapped["missing"] == []
    keyed = map_leaves(SHAPES["dict subclass"], doubled)
    assert keyed.a.equal(keyed["a"])
    frozen = map_leaves(SHAPES["frozen dataclass"], doubled)
    assert frozen.logits.equal(A * 2)
    assert frozen.count == 3
    assert map_leaves(MappingProxyType({"a": B}), doubled)["a"].equal(B * 2)
    assert map_leaves((3, "x", None), str) == ("3", "x", "None")
