import subprocess
import sys

import pytest

from ensexport.errors import ConfigError, UsageError
from ensexport.members.config import find_config, load_config, parse_model_args


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


FULL = """
model = "model.py:Net"
inputs = ["x:float32[batch,4]"]
per-member = ["x"]
emit = "members, mean"
member-axis = 1
dtype = "float16"
opset = 20
target = "cpu"
strategy = "auto"
atol = 0
rtol = 1e-4
output-names = ["logits"]
[model-args]
width = 8
"""


def test_every_option_is_read_in_one_type(tmp_path):
    config = load_config(write(tmp_path / "ensexport.toml", FULL))
    assert config.path == tmp_path / "ensexport.toml"
    assert config.values == {
        "model": "model.py:Net",
        "inputs": ["x:float32[batch,4]"],
        "per-member": ["x"],
        "emit": ["members", "mean"],
        "member-axis": 1,
        "dtype": "float16",
        "opset": 20,
        "target": "cpu",
        "strategy": "auto",
        "atol": 0.0,
        "rtol": 1e-4,
        "output-names": ["logits"],
        "model-args": {"width": 8},
    }


def test_model_args_may_be_json_and_names_a_comma_string(tmp_path):
    text = """model-args = '{"width": 8}'\noutput-names = "a, b"\nemit = ["mean"]"""
    values = load_config(write(tmp_path / "any.toml", text)).values
    assert values == {"model-args": {"width": 8}, "output-names": ["a", "b"], "emit": ["mean"]}


def test_the_nearest_file_upwards_is_found(tmp_path):
    write(tmp_path / "ensexport.toml", "opset = 1")
    near = write(tmp_path / "a" / "ensexport.toml", "opset = 2")
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    found = find_config(tmp_path / "a" / "b" / "c")
    assert found.config is not None
    assert found.config.path == near.resolve()
    assert found.config.values == {"opset": 2}
    assert found.warning == ""


def test_ensexport_toml_wins_over_pyproject_in_one_folder(tmp_path):
    write(tmp_path / "pyproject.toml", "[tool.ensexport]\nopset = 1")
    assert find_config(tmp_path).config.values == {"opset": 1}
    write(tmp_path / "ensexport.toml", "opset = 2")
    assert find_config(tmp_path).config.values == {"opset": 2}


@pytest.mark.parametrize(
    "text",
    ["[tool.ruff]\nline-length = 3", "", "[broken", "tool = 3"],
    ids=["other tool", "empty", "broken", "odd"],
)
def test_a_pyproject_without_the_table_does_not_stop_the_search(tmp_path, text):
    write(tmp_path / "ensexport.toml", "opset = 2")
    write(tmp_path / "a" / "pyproject.toml", text)
    assert find_config(tmp_path / "a").config.values == {"opset": 2}


def test_a_pyproject_that_breaks_beside_our_table_is_an_error(tmp_path):
    write(tmp_path / "pyproject.toml", "[tool.ensexport]\nopset = = 2")
    with pytest.raises(ConfigError, match=r"pyproject\.toml' is not valid TOML.*line 2"):
        find_config(tmp_path)


def test_no_configuration_is_fine(tmp_path):
    found = find_config(tmp_path)
    assert found.config is None or tmp_path not in found.config.path.parents


@pytest.mark.parametrize("name", ["ensexport.toml", "pyproject.toml"])
@pytest.mark.parametrize("given", [".", "m.pt", "*.pt", ".."], ids=["folder", "file beside it", "glob", "folder above"])
def test_a_configuration_among_the_checkpoints_is_not_obeyed(tmp_path, monkeypatch, name, given):
    ours = write(tmp_path / "ensexport.toml", "opset = 2")
    folder = tmp_path / "ckpts" / "inner"
    text = 'model = "evil.py:Net"'
    write(folder / name, text if name == "ensexport.toml" else f"[tool.ensexport]\n{text}")
    write(folder / "m.pt", "x")
    monkeypatch.chdir(folder)
    found = find_config(folder, checkpoint_paths=[given])
    assert found.config is not None
    assert found.config.path == ours.resolve()
    assert f"'{folder / name}' lies among the checkpoints and will not be obeyed" in found.warning
    assert "--config" in found.warning


def test_all_files_that_are_not_obeyed_are_named(tmp_path):
    write(tmp_path / "ensexport.toml", "opset = 1")
    write(tmp_path / "sub" / "ensexport.toml", "opset = 2")
    warning = find_config(tmp_path / "sub", checkpoint_paths=[tmp_path]).warning
    assert f"'{tmp_path}/sub/ensexport.toml', '{tmp_path}/ensexport.toml' lie among the checkpoints" in warning


def test_a_broken_file_among_the_checkpoints_does_no_harm(tmp_path):
    write(tmp_path / "ckpts" / "ensexport.toml", "= broken")
    write(tmp_path / "ensexport.toml", "opset = 2")
    found = find_config(tmp_path / "ckpts", checkpoint_paths=[tmp_path / "ckpts"])
    assert found.config.values == {"opset": 2}


def test_a_pyproject_of_another_tool_among_the_checkpoints_is_no_warning(tmp_path):
    write(tmp_path / "pyproject.toml", "[tool.ruff]")
    assert find_config(tmp_path, checkpoint_paths=[tmp_path]).warning == ""


def test_a_project_that_holds_the_checkpoint_folder_is_obeyed(tmp_path):
    write(tmp_path / "ensexport.toml", "opset = 2")
    write(tmp_path / "ckpts" / "m.pt", "x")
    found = find_config(tmp_path, checkpoint_paths=[tmp_path / "ckpts", tmp_path / "ckpts" / "m.pt"])
    assert found.config.values == {"opset": 2}
    assert found.warning == ""


def test_an_unknown_name_lists_the_valid_ones_and_the_closest(tmp_path):
    path = write(tmp_path / "ensexport.toml", "model_args = {}")
    with pytest.raises(ConfigError, match=r"unknown name 'model_args' .*Did you mean 'model-args'") as caught:
        load_config(path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)
    for name in ("inputs", "per-member", "strategy", "output-names"):
        assert name in caught.value.hint


@pytest.mark.parametrize(
    ("line", "expected", "got"),
    [
        ("model = 3", "a string", "3 (an integer)"),
        ('inputs = "x"', "a list of strings", "'x' (a string)"),
        ("inputs = [1]", "a list of strings", "a list"),
        ("emit = 1.5", "a list of strings or a comma-separated string", "1.5 (a float)"),
        ("model-args = '[1]'", "a table or a JSON object in a string", "'[1]' (a string)"),
        ("model-args = 1", "a table or a JSON object in a string", "1 (an integer)"),
        ("member-axis = 2", "one of 0, 1", "2 (an integer)"),
        ("member-axis = true", "one of 0, 1", "True (true or false)"),
        ("member-axis = 0.0", "one of 0, 1", "0.0 (a float)"),
        ('dtype = "float64"', "one of 'float32', 'float16', 'bfloat16'", "'float64' (a string)"),
        ("opset = true", "a positive integer", "True (true or false)"),
        ("opset = 0", "a positive integer", "0 (an integer)"),
        ("target = []", "one of 'cpu', 'cuda', 'tensorrt', 'portable'", "a list"),
        ("strategy = {}", "one of 'auto'", "a table"),
        ("atol = -1", "a number of 0 or more", "-1 (an integer)"),
        ("rtol = nan", "a number of 0 or more", "nan (a float)"),
        ("rtol = 2020-01-01", "a number of 0 or more", "a date"),
    ],
)
def test_a_wrong_value_names_what_is_expected(tmp_path, line, expected, got):
    path = write(tmp_path / "ensexport.toml", line)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert repr(line.split(" ")[0]) in message
    assert f"expected {expected}" in message
    assert got in message
    assert str(path) in message


def test_a_syntax_error_names_the_line(tmp_path):
    path = write(tmp_path / "ensexport.toml", "opset = 20\nmodel = model.py:Net")
    with pytest.raises(ConfigError, match=r"not valid TOML: .*line 2"):
        load_config(path)


def test_bytes_that_are_no_text_are_an_error(tmp_path):
    path = tmp_path / "ensexport.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(path)


def test_a_named_file_must_exist_be_readable_and_have_the_table(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match=r"cannot read .*Is a directory"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match=r"has no \[tool.ensexport\] table"):
        load_config(write(tmp_path / "pyproject.toml", "[tool.ruff]"))
    with pytest.raises(ConfigError, match=r"\[tool.ensexport\] in .* is an integer: expected a table"):
        load_config(write(tmp_path / "pyproject.toml", "[tool]\nensexport = 3"))


def test_model_args_are_a_json_object():
    assert parse_model_args('{"width": 8, "act": null}') == {"width": 8, "act": None}


@pytest.mark.parametrize(
    ("text", "match"),
    [("width=8", "cannot read the model arguments 'width=8'"), ("[1]", r"'\[1\]' are no JSON object")],
    ids=["no JSON", "a list"],
)
def test_other_model_args_are_a_usage_error(text, match):
    with pytest.raises(UsageError, match=match) as caught:
        parse_model_args(text)
    assert '{"width": 128}' in caught.value.hint


def test_reading_a_configuration_does_not_load_torch():
    code = "import sys, ensexport.members.config, ensexport.members.discovery; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
