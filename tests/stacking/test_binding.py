"""How named inputs meet `forward`: what each signature makes of them, told by what arrives where."""

import pytest
import torch
from torch import nn

from ensexport.errors import ModelInputError
from ensexport.stacking.binding import bind_inputs


class Plain(nn.Module):
    def forward(self, x, mask=None, *, flag=None):
        return {"x": x, "mask": mask, "flag": flag}


class Two(nn.Module):
    def forward(self, a, b):
        return {"a": a, "b": b}


class PositionalOnly(nn.Module):
    def forward(self, a, b=None, /, c=None):
        return {"a": a, "b": b, "c": c}


class Rest(nn.Module):
    def forward(self, first, second=None, *rest, last=None):
        return {"first": first, "second": second, "rest": rest, "last": last}


class Keywords(nn.Module):
    def forward(self, x, y=None, **options):
        return {"x": x, "y": y, **options}


class Anything(nn.Module):
    def forward(self, *args, **kwargs):
        return {"args": args, **kwargs}


class Nothing(nn.Module):
    def forward(self):
        return {}


# model, the inputs' names, and which input arrives where
BOUND = {
    "by name": (Plain, ["x"], {"x": "x"}),
    "by name, out of order": (Plain, ["mask", "x"], {"x": "x", "mask": "mask"}),
    "by position": (Plain, ["image"], {"x": "image"}),
    "two by position": (Two, ["p", "q"], {"a": "p", "b": "q"}),
    "one by name, one by position": (Two, ["b", "image"], {"a": "image", "b": "b"}),
    "an optional one by position": (Plain, ["p", "q"], {"x": "p", "mask": "q"}),
    "keyword only": (Plain, ["x", "flag"], {"x": "x", "flag": "flag"}),
    "keyword only and by position": (Plain, ["image", "flag"], {"x": "image", "flag": "flag"}),
    "positional only": (PositionalOnly, ["p", "q"], {"a": "p", "b": "q"}),
    "positional only, named": (PositionalOnly, ["b", "a"], {"a": "a", "b": "b"}),
    "positional only and more": (PositionalOnly, ["c", "image"], {"a": "image", "c": "c"}),
    "*args": (Rest, ["p", "q", "r", "s"], {"first": "p", "second": "q", "rest": ("r", "s")}),
    "*args after names": (
        Rest, ["second", "r", "first", "s"], {"first": "first", "second": "second", "rest": ("r", "s")},
    ),
    "*args and keyword only": (
        Rest, ["p", "last", "q", "r"], {"first": "p", "second": "q", "rest": ("r",), "last": "last"},
    ),
    "*args not needed": (Rest, ["first", "last"], {"first": "first", "last": "last"}),
    "**kwargs": (Keywords, ["x", "extra", "more"], {"x": "x", "extra": "extra", "more": "more"}),
    "**kwargs not needed": (Keywords, ["image", "table"], {"x": "image", "y": "table"}),
    "anything": (Anything, ["p", "q"], {"args": ("p", "q")}),
    "named like the variable ones": (Anything, ["kwargs", "args"], {"args": ("kwargs", "args")}),
    "no inputs": (Nothing, [], {}),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "names", "arrived"), BOUND.values(), ids=BOUND)
def test_every_input_arrives_where_its_name_or_place_says(kind, names, arrived):
    module = kind()
    binding = bind_inputs(module, names)
    tensors = [torch.tensor(index) for index in range(len(names))]
    got = binding.call(module, tensors)
    found = {
        place: tuple(names[int(v)] for v in value) if isinstance(value, tuple) else names[int(value)]
        for place, value in got.items()
        if value is not None and value != ()
    }
    assert found == arrived
    assert binding.names == tuple(names)


# model, names, what the message says
MISFITS = {
    "missing": (Two, ["a"], r"inputs \(a\) to Two\.forward\(a, b\): no input for b\."),
    "two missing": (Two, [], r"inputs \(\) to Two\.forward\(a, b\): no input for a, b\."),
    "too many": (Two, ["a", "b", "c"], r"Two\.forward\(a, b\): 3 inputs given\."),
    "too many by position": (Plain, ["p", "q", "r"], r"Plain\.forward\(x, mask, flag\): 3 inputs given\."),
    "for nothing": (Nothing, ["x"], r"Nothing\.forward\(\): 1 inputs given\."),
    "required before **kwargs": (Keywords, ["p", "q", "r"], "no input for x"),
    "a gap before a positional-only one": (PositionalOnly, ["b"], "no input for a"),
    "positional-only after one left out": (
        type("Gap", (nn.Module,), {"forward": lambda self, a=None, b=None, /: a}),
        ["b"],
        "'a' is left out, and a later one can only be given by position",
    ),
}


@pytest.mark.parametrize(("kind", "names", "message"), MISFITS.values(), ids=MISFITS)
def test_inputs_that_do_not_fit_are_refused(kind, names, message):
    with pytest.raises(ModelInputError, match=f"cannot bind the .*{message}") as caught:
        bind_inputs(kind(), names)
    assert caught.value.hint
    assert caught.value.exit_code == 4


def test_an_error_of_the_model_is_not_hidden():
    class Strict(nn.Module):
        def forward(self, x):
            raise TypeError("the model's own")

    module = Strict()
    with pytest.raises(TypeError, match="the model's own"):
        bind_inputs(module, ["x"]).call(module, [torch.ones(1)])
