"""The settings file: found from the current directory upwards, typed options win, nothing is ignored in silence."""

import json

import pytest
import torch

from ensexport.cli.settings import Settings
from ensexport.errors import ConfigError, UsageError
from ensexport.members.selection import Selection
from ensexport.members.trust import Trust
from tests.cli.projects import X, load_script, run

SETTINGS = f"""
model = "model.py:Net"
inputs = ["{X}"]
per-member = ["x"]
member-axis = 1
output-names = "logits"
rtol = 1e-4
[model-args]
width = 8
"""


def settings(text, typed=(), checkpoints=("ckpts",)):
    with open("ensexport.toml", "w") as file:
        file.write(text)
    return Settings(dict(typed), None, checkpoints)


def test_a_bare_command_takes_all_from_the_file(project):
    (project / "ensexport.toml").write_text(SETTINGS)
    answer = run("pack", "ckpts", "-o", "e.ts", "--json").answer
    assert answer["ok"] is True
    assert answer["validation"]["tolerance"] == 1e-4
    assert {check["output"] for check in answer["validation"]["checks"]} == {"logits"}
    assert load_script("e.ts")(torch.zeros(3, 5, 4)).shape == (5, 3, 3)


def test_dtypes_may_stand_in_the_file(project):
    (project / "ensexport.toml").write_text(
        'dtype = "float16"\nio-dtype = "float16"\n' + SETTINGS.replace("1e-4", "1e-2")
    )
    answer = run("pack", "ckpts", "-o", "e.ts", "--json").answer
    assert answer["dtypes"] == {"members": "float32", "inside": "float16", "io": "float16"}
    assert load_script("e.ts")(torch.zeros(3, 5, 4).half()).dtype == torch.float16
    assert (
        run("pack", "ckpts", "-o", "f.ts", "--dtype", "bfloat16", "--rtol", "0.1", "--json").answer["dtypes"]["inside"]
        == "bfloat16"
    )


def test_dtype_resolves_members_of_different_dtypes(project):
    state = torch.load("ckpts/m1.pt")
    torch.save({name: tensor.half() for name, tensor in state.items()}, "ckpts/m1.pt")
    arguments = ("ckpts", "--model", "model.py:Net", "--input", X, "-o", "e.onnx")
    assert run("pack", *arguments, "--json").error["code"] == "E_STACK"
    assert run("pack", *arguments, "--dtype", "float16", "--dry-run").exit_code == 0
    answer = run("pack", *arguments, "--dtype", "float16", "--json").answer
    assert any("member 1: float16 as float32" in warning for warning in answer["warnings"])
    assert run("validate", "e.onnx", "ckpts", "--model", "model.py:Net").exit_code == 0
    assert run("bench", "e.onnx", "ckpts", "--model", "model.py:Net", "--alternatives", "loop,torch-loop",
               "--batch", "1", "--blocks", "3").exit_code == 0  # fmt: skip


def test_paths_in_the_file_are_relative_to_it(project, monkeypatch):
    (project / "ensexport.toml").write_text(SETTINGS)
    (project / "below").mkdir()
    monkeypatch.chdir(project / "below")
    assert run("pack", "../ckpts", "-o", "e.ts").exit_code == 0


def test_what_is_typed_wins(project):
    merged = settings(SETTINGS, {"model": "other.py:Net", "member_axis": 0, "rtol": 0.5, "inputs": ("x:float32[2]",)})
    assert merged.loading() == {
        "model": "other.py:Net",
        "model_args": {"width": 8},
        "base_dir": None,
        "selection": Selection(),
        "trust": Trust(),
        "allow_nonfinite": False,
    }
    packing = merged.packing()
    assert (packing["member_axis"], packing["tolerance"].rtol) == (0, 0.5)
    assert [str(spec) for spec in packing["inputs"]] == ["x:float32[2]"]


def test_where_the_weights_lie_may_stand_in_the_file(project):
    text = 'model = "model.py:Net"\nweights = "raw"\nkey = "net"\nstrip-prefix = "a."\nallow-nonfinite = true\n'
    loading = settings(text, {}).loading()
    assert (loading["selection"], loading["allow_nonfinite"]) == (Selection("raw", "net", "a."), True)
    typed = settings(text, {"weights": "ema", "allow_pickle": True, "trust_code": False}).loading()
    assert (typed["selection"].weights, typed["trust"]) == ("ema", Trust(allow_pickle=True))


def test_a_file_among_the_checkpoints_is_not_obeyed_but_warned_of(project):
    (project / "ckpts" / "ensexport.toml").write_text('model = "evil.py:Net"')
    result = run("pack", "ckpts", "--model", "model.py:Net", "--input", X, "-o", "e.ts", "--json")
    assert result.exit_code == 0
    assert any("never obeyed" in skipped["reason"] for skipped in result.answer["skipped"])


def test_the_current_folder_being_packed_is_not_obeyed(project, monkeypatch):
    (project / "ckpts" / "ensexport.toml").write_text('model = "evil.py:Net"')
    monkeypatch.chdir(project / "ckpts")
    result = run("pack", ".", "--input", X, "-o", "../e.ts", "--json")
    assert result.exit_code == 2
    assert "no architecture" in result.error["message"]


REFUSED = {
    "unknown-key": ("modle = 'x'", "'modle'", "model"),
    "wrong-type": ("member-axis = 'one'", "'member-axis'", "0, 1"),
    "no-toml": ("model = ", "ensexport.toml", "TOML"),
    "dtype": ("dtype = 'half'", "'dtype'", "float16"),
    "io-dtype": ("io-dtype = 16", "'io-dtype'", "float16"),
    "tune-batch": ("tune-batch = 1.5", "tune-batch", "list"),
}


@pytest.mark.parametrize(("text", "fact", "expected"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("command", ["pack", "validate", "bench"])
def test_a_file_that_cannot_be_obeyed(project, text, fact, expected, command):
    (project / "ensexport.toml").write_text(text)
    arguments = ("ckpts", "-o", "e.ts") if command == "pack" else ("e.ts", "ckpts")
    result = run(command, *arguments, "--json")
    assert result.exit_code == 2
    assert result.error["code"] == "E_CONFIG"
    assert fact in result.error["message"]
    assert expected in result.error["message"] + result.error["hint"]


def test_the_batch_sizes_of_tune_may_be_a_list(project):
    merged = settings("tune-batch = [2, 16]\nstrategy = 'tune'" + SETTINGS).packing()
    assert (merged["strategy"], merged["tune_batches"]) == ("tune", [2, 16])
    assert settings(SETTINGS, {"tune_batch": "4"}).packing()["tune_batches"] == [4]
    with pytest.raises(UsageError, match="cannot read --tune-batch '0': expected positive integers like 1,8,64"):
        settings(SETTINGS, {"tune_batch": "0"}).packing()


def test_emit_is_read_alike_from_the_command_line_and_the_file(project):
    typed = settings(SETTINGS, {"emit": ("probs,vote", "aux=mean"), "class_axis": ("1",)}).packing()["emission"]
    for text in ('emit = ["probs", "vote", "aux=mean"]', 'emit = ["probs, vote", "aux = mean"]'):
        assert settings(f"{text}\nclass-axis = 1\n" + SETTINGS).packing()["emission"] == typed
    assert typed.names == ("probs", "vote")
    assert typed.by_output == {"aux": ("mean",)}
    one = settings('emit = "aux=mean,var"\n' + SETTINGS).packing()["emission"]
    assert one.by_output == {"aux": ("mean", "var")}
    with pytest.raises(UsageError, match="unknown name 'avg' in --emit 'avg'"):
        settings(SETTINGS, {"emit": ("avg",)}).packing()


def test_member_weights_of_the_file_lie_beside_it(project):
    assert settings(SETTINGS).packing()["weights"] is None
    assert settings("member-weights = [1, 0.5]\n" + SETTINGS).packing()["weights"].values == (1.0, 0.5)
    assert settings(SETTINGS, {"member_weights": "input"}).packing()["weights"].is_input
    with pytest.raises(UsageError, match="cannot read --member-weights 'nowhere'"):
        settings('member-weights = "nowhere"\n' + SETTINGS).packing()


def test_an_empty_output_name(project):
    with pytest.raises(UsageError, match="--output-names 'a,,b': a name is empty"):
        settings(SETTINGS, {"output_names": "a,,b"}).packing()


def test_a_named_file_that_is_missing(project):
    with pytest.raises(ConfigError, match=r"'nowhere\.toml'"):
        Settings({}, "nowhere.toml", ("ckpts",))


def test_model_args_are_parsed(project):
    assert settings("", {"model": "m:N", "model_args": json.dumps({"a": 1})}).loading()["model_args"] == {"a": 1}


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "much"])
def test_a_bound_that_is_no_number(project, value):
    result = run("pack", "ckpts", "--model", "model.py:Net", "--input", X, "-o", "e.ts", "--rtol", value, "--json")
    assert result.exit_code == 2
    assert value in result.error["message"]
