import sys

import pytest

from ensexport.errors import ArchitectureError, UsageError
from ensexport.members.user_code import import_attribute, running_user_code

NET = "import torch\nclass Net(torch.nn.Linear):\n    def __init__(self): super().__init__(2, 2)\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_is_imported_under_a_private_name(tmp_path):
    write(tmp_path / "src" / "my-model.py", NET)
    net = import_attribute("src/my-model.py", "Net", base_dir=tmp_path)
    assert net.__name__ == "Net"
    assert net.__module__ == "_ensexport_model_my_model"
    assert sys.modules["_ensexport_model_my_model"].Net is net
    assert "my-model" not in sys.modules


def test_two_files_of_one_name_are_two_modules(tmp_path):
    write(tmp_path / "a" / "net.py", "WIDTH = 1")
    write(tmp_path / "b" / "net.py", "WIDTH = 2")
    values = [import_attribute(f"{folder}/net.py", "WIDTH", base_dir=tmp_path) for folder in "ab"]
    assert values == [1, 2]


def test_a_sibling_file_can_be_imported_but_shadows_nothing(tmp_path):
    write(tmp_path / "ensexport_sibling.py", "WIDTH = 3")
    write(tmp_path / "torch.py", "raise RuntimeError('the wrong torch')")
    write(tmp_path / "model.py", "import torch\nfrom ensexport_sibling import WIDTH\nNAME = torch.nn.Linear")
    assert import_attribute("model.py", "WIDTH", base_dir=tmp_path) == 3
    assert import_attribute(str(tmp_path / "model.py"), "NAME.__name__", base_dir=tmp_path) == "Linear"
    assert sys.path[-1] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def test_a_module_is_found_in_the_base_folder(tmp_path):
    write(tmp_path / "ensexport_pkg" / "__init__.py", "")
    write(tmp_path / "ensexport_pkg" / "nets.py", "from . import __name__ as parent\nclass A:\n    width = 4\n")
    assert import_attribute("ensexport_pkg.nets", "A.width", base_dir=tmp_path) == 4


def test_what_user_code_prints_goes_to_stderr(tmp_path, capsys):
    write(tmp_path / "model.py", "print('hello from the model')\nNet = 1")
    import_attribute("model.py", "Net", base_dir=tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    assert "hello from the model" in err


@pytest.mark.parametrize(
    ("name", "kind"), [("gone.py", "does not exist"), ("folder/", "is not a file")], ids=["missing", "folder"]
)
def test_a_missing_file_is_named(tmp_path, name, kind):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArchitectureError, match=f"cannot import '{tmp_path / name}': it {kind}") as caught:
        import_attribute(name, "Net", base_dir=tmp_path)
    assert caught.value.exit_code == 4


def test_a_file_that_is_not_python_is_refused(tmp_path):
    write(tmp_path / "src" / "model.txt", NET)
    with pytest.raises(ArchitectureError, match=r"model\.txt': it is no Python file"):
        import_attribute("src/model.txt", "Net", base_dir=tmp_path)


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("x = 1\n\ny = 1 / 0\n", "ZeroDivisionError: division by zero", 3),
        ("def f(:\n", "SyntaxError: ", 1),
        ("import sys\nsys.exit(3)\n", r"SystemExit: 3", 2),
        ("import json\njson.loads('no')\n", "JSONDecodeError: Expecting value", 2),
        (
            "import ensexport_no_such_thing\n",
            "ModuleNotFoundError: No module named 'ensexport_no_such_thing'",
            1,
        ),
        ("raise ValueError\n", r"model\.py': ValueError \(", 1),
    ],
    ids=["raises", "syntax", "exit", "in a library", "missing import", "no text"],
)
def test_a_file_that_fails_names_type_text_and_line(tmp_path, text, what, line):
    path = write(tmp_path / "model.py", text)
    before = {name for name in sys.modules if name.startswith("_ensexport")}
    with pytest.raises(ArchitectureError, match=what) as caught:
        import_attribute("model.py", "Net", base_dir=tmp_path)
    assert f"cannot import '{path}': " in str(caught.value)
    assert f"({path}:{line})" in str(caught.value)
    assert caught.value.__cause__ is not None
    assert {name for name in sys.modules if name.startswith("_ensexport")} == before


def test_a_relative_import_in_a_file_says_what_to_do(tmp_path):
    write(tmp_path / "model.py", "from .parts import x")
    with pytest.raises(ArchitectureError, match=r"no known parent package; .* named as package\.module:factory"):
        import_attribute("model.py", "Net", base_dir=tmp_path)


def test_a_missing_module_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(ArchitectureError, match=f"no module named 'ensexport_none', neither .* '{tmp_path}'"):
        import_attribute("ensexport_none.nets", "Net", base_dir=tmp_path)


def test_a_module_that_fails_names_type_text_and_line(tmp_path):
    path = write(tmp_path / "ensexport_bad.py", "import ensexport_no_such_thing")
    with pytest.raises(ArchitectureError, match=r"cannot import 'ensexport_bad': ModuleNotFoundError") as caught:
        import_attribute("ensexport_bad", "Net", base_dir=tmp_path)
    assert f"{path}:1" in str(caught.value)


def test_a_missing_attribute_lists_what_is_close_and_what_is_there(tmp_path):
    write(tmp_path / "model.py", NET + "class Block: pass\n")
    with pytest.raises(ArchitectureError, match=r"has no attribute 'Nett'\. Did you mean 'Net'\? .* Block, Net"):
        import_attribute("model.py", "Nett", base_dir=tmp_path)


def test_errors_of_our_own_pass_through_unchanged():
    with pytest.raises(UsageError, match=r"^as it was$"), running_user_code("doing"):
        raise UsageError("as it was")


def test_an_interrupt_is_not_caught():
    with pytest.raises(KeyboardInterrupt), running_user_code("doing"):
        raise KeyboardInterrupt
