import functools

import pytest
import torch
from torch import nn

from ensexport.errors import ArchitectureError, UsageError
from ensexport.members.architecture import Architecture, parse_model_args, resolve_architecture

MODEL = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, width=3, *, deep=False):
        super().__init__(nn.Linear(4, width), nn.BatchNorm1d(width))
def factory(width): return Net(width)
finished = Net(5)
number = 3
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "ensexport_module.py").write_text(MODEL)
    return tmp_path


def build_net(width=2):
    return nn.Linear(4, width)


@pytest.mark.parametrize(
    ("text", "arguments", "width"),
    [
        ("model.py:Net", None, 3),
        ("model.py:Net", {"width": 7}, 7),
        ("model.py:factory", {"width": 2}, 2),
        ("model.py:finished", None, 5),
        ("ensexport_module:Net", {"width": 6}, 6),
    ],
)
def test_texts_are_built_in_eval_mode(folder, text, arguments, width):
    architecture = resolve_architecture(text, arguments, folder)
    module = architecture.build()
    assert architecture.name == text
    assert isinstance(module, nn.Module)
    assert module[0].out_features == width
    assert not any(part.training for part in module.modules())


def test_without_a_base_folder_the_current_directory_counts(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert isinstance(resolve_architecture("./model.py:Net").build(), nn.Sequential)
    assert isinstance(resolve_architecture("ensexport_module:Net").build(), nn.Sequential)


@pytest.mark.parametrize(
    ("model", "name"),
    [(nn.Linear, "Linear"), (build_net, "build_net"), (nn.Linear(4, 2), "Linear")],
    ids=["class", "function", "finished module"],
)
def test_objects_are_named_after_themselves(model, name):
    arguments = {"in_features": 4, "out_features": 2} if model is nn.Linear else None
    architecture = resolve_architecture(model, arguments)
    assert architecture.name == name
    assert architecture.build().out_features == 2


def test_a_partial_and_a_resolved_architecture_are_taken():
    architecture = resolve_architecture(functools.partial(build_net, width=9))
    assert "build_net" in architecture.name
    assert architecture.build().out_features == 9
    assert resolve_architecture(architecture) is architecture
    with pytest.raises(UsageError, match="is resolved already"):
        resolve_architecture(architecture, {"width": 2})


def test_a_finished_module_is_copied_for_each_build():
    module = nn.Linear(2, 2)
    first, second = (resolve_architecture(module).build() for _ in range(2))
    assert first is not module
    assert first is not second
    assert torch.equal(first.weight, module.weight)
    assert module.training


def test_builds_share_nothing_even_if_the_factory_does():
    shared = nn.Linear(2, 2)
    architecture = resolve_architecture(lambda: nn.Sequential(shared))
    first, second = architecture.build(), architecture.build()
    assert first[0] is shared
    assert second[0] is not shared
    cached = resolve_architecture(functools.lru_cache(build_net))
    assert cached.build() is not cached.build()


def test_what_cannot_be_copied_is_said():
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("not me")

    stubborn = Stubborn(1, 1)
    architecture = resolve_architecture(lambda: stubborn)
    architecture.build()
    with pytest.raises(ArchitectureError, match=r"cannot copy '.*', which returns one object twice: TypeError: not me"):
        architecture.build()


@pytest.mark.parametrize("text", ["model.py", "Net", ":Net", "model.py:", "model.py:Net()", "model.py: Net", ""])
def test_another_form_is_a_usage_error(text):
    with pytest.raises(UsageError, match="cannot read the model") as caught:
        resolve_architecture(text)
    assert repr(text) in str(caught.value)
    assert "path/to/file.py:Factory, package.module:factory, timm:NAME" in caught.value.hint
    assert caught.value.exit_code == 2


def test_arguments_for_a_finished_module_are_a_usage_error(folder):
    with pytest.raises(UsageError, match=r"'model.py:finished' is a finished module, yet .* given: width"):
        resolve_architecture("model.py:finished", {"width": 3}, folder)


def test_what_cannot_be_called_is_refused(folder):
    with pytest.raises(
        ArchitectureError, match=r"'model.py:number' is a value of type int: expected a class"
    ) as caught:
        resolve_architecture("model.py:number", base_dir=folder)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            {"widht": 3},
            r"with \(widht=3\): got an unexpected keyword argument 'widht'; it takes \(width=3, \*, deep",
        ),
        ({"width": 1, "x": "a"}, r"with \(width=1, x='a'\)"),
    ],
    ids=["misspelt", "one too many"],
)
def test_arguments_that_do_not_fit_show_those_that_do(folder, arguments, problem):
    with pytest.raises(ArchitectureError, match=f"cannot call 'model.py:Net' {problem}"):
        resolve_architecture("model.py:Net", arguments, folder).build()


def test_a_missing_argument_is_named(folder):
    with pytest.raises(ArchitectureError, match=r"cannot call 'model.py:factory' with \(\): missing .*'width'"):
        resolve_architecture("model.py:factory", None, folder).build()


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("raise ValueError('no such width')", "ValueError: no such width"),
        ("import sys; sys.exit('done')", "SystemExit: done"),
        ("return nn.Linear(2, 'x')", "TypeError: "),
    ],
    ids=["raises", "exits", "in torch"],
)
def test_a_factory_that_raises_names_type_text_and_line(tmp_path, body, what):
    path = tmp_path / "bad.py"
    path.write_text(f"from torch import nn\ndef net():\n    {body}\n")
    with pytest.raises(ArchitectureError, match=f"cannot build 'bad.py:net': {what}") as caught:
        resolve_architecture("bad.py:net", None, tmp_path).build()
    assert f"({path}:3)" in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("result", "what"),
    [(None, "None"), ({}, "a value of type dict"), (nn.Linear, "the class Linear")],
    ids=["none", "dict", "class"],
)
def test_a_factory_that_returns_no_module_says_what_it_returned(result, what):
    with pytest.raises(ArchitectureError, match=f"returned {what}: expected a torch.nn.Module"):
        resolve_architecture(lambda: result).build()


def test_a_module_that_cannot_be_put_into_eval_mode_is_said():
    class Odd(nn.Linear):
        def train(self, mode=True):
            raise RuntimeError("always training")

    with pytest.raises(ArchitectureError, match="into eval mode: RuntimeError: always training"):
        resolve_architecture(lambda: Odd(1, 1)).build()


def test_what_a_factory_prints_goes_to_stderr(capsys):
    def chatty():
        print("building")
        return nn.Identity()

    resolve_architecture(chatty).build()
    out, err = capsys.readouterr()
    assert (out, err) == ("", "building\n")


def test_a_callable_without_a_signature_is_just_called():
    with pytest.raises(ArchitectureError, match="returned a value of type dict"):
        Architecture("dict", dict, {"a": 1}).build()


def test_model_args_are_parsed_here_too():
    assert parse_model_args('{"width": 8}') == {"width": 8}
