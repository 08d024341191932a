"""`inspect`: what it says of a folder of checkpoints, and that it ends as `pack` would."""

import hashlib
import importlib
import re
import sys

import pytest
import torch

from ensexport.cli.settings import Settings
from ensexport.errors import ConfigError
from tests.cli.projects import X, change_state, run, snapshot

MODEL = ("--model", "model.py:Net")


@pytest.fixture(autouse=True)
def importable_model(project, monkeypatch):
    monkeypatch.syspath_prepend(str(project))
    yield
    sys.modules.pop("model", None)


def inspect(*arguments, exit_code=0):
    result = run("inspect", *arguments, "--json")
    assert result.exit_code == exit_code, result.out + result.err
    return result.answer


def net(project, seed):
    torch.manual_seed(seed)
    return importlib.import_module("model").Net()


def test_the_json_answer_tells_of_every_member_and_writes_nothing(project):
    before = snapshot(project)
    torch.save({"state_dict": net(project, 7).state_dict(), "epoch": 12, "metric": 0.5}, project / "ckpts" / "m7.pt")
    (project / "ckpts" / "notes.txt").write_text("x")
    answer = inspect("ckpts", *MODEL)
    assert (answer["command"], answer["ok"], answer["problems"]) == ("inspect", True, [])
    assert [member["index"] for member in answer["members"]] == [0, 1, 2, 3]
    last = answer["members"][3]
    assert (last["container_key"], last["epoch"], last["metrics"]) == ("state_dict", 12, {"metric": 0.5})
    assert (last["n_tensors"], last["n_values"], last["dtypes"]) == (4, 4 * 8 + 8 + 8 * 3 + 3, ["float32"])
    assert last["size_bytes"] == (project / "ckpts" / "m7.pt").stat().st_size
    assert last["format"] == "torch-zip"
    assert [skipped["path"] for skipped in answer["skipped"]] == ["ckpts/notes.txt"]
    assert set(snapshot(project)) - set(before) == {"ckpts/m7.pt", "ckpts/notes.txt"}


def test_the_text_says_what_to_do_about_a_folder_with_a_duplicate_a_dead_fold_and_an_optimizer(project):
    folder = project / "ckpts"
    model = net(project, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "adam.pt")
    torch.save(model.state_dict(), folder / "m3.pt")
    (folder / "m4.pt").write_bytes((folder / "m1.pt").read_bytes())
    change_state(folder / "m2.pt", lambda state: state.update({name: 100 * t for name, t in state.items()}))
    result = run("inspect", "ckpts", *MODEL)
    assert result.exit_code == 0
    assert "members (5)" in result.out
    assert "ckpts/adam.pt  skipped: an optimizer's state, no weights" in result.out
    assert "members 1 and 4 hold identical weights" in result.out
    assert "leave all but one out" in result.out
    assert "member 2 (ckpts/m2.pt)" in result.out
    assert "look at its training log" in result.out
    assert result.out.endswith("all 5 members can be packed\n")


def test_every_problem_is_reported_and_the_exit_code_is_that_of_pack(project):
    folder = project / "ckpts"
    (folder / "m1.pt").write_bytes((folder / "m1.pt").read_bytes()[:-100])
    change_state(folder / "m2.pt", lambda state: state.update({"last.bias": torch.tensor([1.0, float("nan"), 0.0])}))
    torch.save({"other": torch.ones(2)}, folder / "m3.pt")
    answer = inspect("ckpts", *MODEL, exit_code=3)
    assert [problem["code"] for problem in answer["problems"]] == ["E_CHECKPOINT", "E_NONFINITE", "E_STACK"]
    assert [member["index"] for member in answer["members"]] == [0, None, 1, 2]
    assert [member["problem"] and member["problem"]["code"] for member in answer["members"]] == [
        None, "E_CHECKPOINT", "E_NONFINITE", "E_STACK",
    ]  # fmt: skip
    assert answer["error"] == answer["problems"][0]
    assert (answer["ok"], answer["exit_code"]) == (False, 3)
    packed = run("pack", "ckpts", *MODEL, "--input", X, "-o", "e.ts")
    assert packed.exit_code == 3
    assert "E_CHECKPOINT" in packed.err
    text = run("inspect", "ckpts", *MODEL)
    assert text.exit_code == 3
    assert "pack would refuse this: 3 problems" in text.out
    assert "ckpts/m1.pt  refused, see below" in text.out


def test_without_a_model_it_says_what_can_be_seen(project):
    text = run("inspect", "ckpts").out
    assert text.endswith("all 3 members can be packed, as far as can be seen without --model\n")
    assert inspect("ckpts")["architecture"] is None


def test_a_dry_run_shows_the_same_table(project):
    (project / "ckpts" / "notes.txt").write_text("x")
    dry = run("pack", "ckpts", *MODEL, "--input", X, "-o", "e.ts", "--dry-run").out
    assert dry == run("inspect", "ckpts", *MODEL).out + "dry run: nothing was exported or written\n"


def test_options_that_say_where_the_weights_lie_reach_the_files(project):
    folder = project / "ckpts"
    for path in folder.iterdir():
        path.unlink()
    for seed in range(2):
        raw, averaged = net(project, seed).state_dict(), net(project, seed + 10).state_dict()
        torch.save({"model": raw, "model_ema": averaged, "odd": {"net.x": {f"a.{n}": t for n, t in raw.items()}}},
                   folder / f"m{seed}.pt")  # fmt: skip
    default = inspect("ckpts", *MODEL)
    assert {(m["container_key"], m["weights"]) for m in default["members"]} == {("model_ema", "ema")}
    (warning,) = default["warnings"]
    assert "members 0 and 1 hold weights under several keys: the averaged ones under 'model_ema' are taken" in warning
    raw = inspect("ckpts", *MODEL, "--weights", "raw")
    assert {(m["container_key"], m["weights"]) for m in raw["members"]} == {("model", "raw")}
    odd = inspect("ckpts", *MODEL, "--key", "odd.net.x", exit_code=3)
    assert odd["error"]["code"] == "E_CHECKPOINT"  # the inner key has a dot of its own
    (project / "ensexport.toml").write_text('model = "model.py:Net"\nweights = "raw"\n')
    assert {m["container_key"] for m in inspect("ckpts")["members"]} == {"model"}


def test_a_prefix_and_values_that_are_not_finite_may_be_asked_for(project):
    folder = project / "ckpts"
    for path in folder.iterdir():
        path.unlink()
    state = {
        f"{prefix}.{name}": tensor for prefix in ("a", "b") for name, tensor in net(project, 0).state_dict().items()
    }
    state["b.first.bias"] = torch.full((8,), float("inf"))
    torch.save(state, folder / "m.pt")
    assert inspect("ckpts", *MODEL, exit_code=4)["error"]["code"] == "E_STACK"
    answer = inspect("ckpts", *MODEL, "--strip-prefix", "a")
    assert answer["members"][0]["stripped_prefix"] == "a."
    assert any("dropped 'b.first.weight'" in warning for warning in answer["warnings"])
    assert inspect("ckpts", *MODEL, "--strip-prefix", "b.", exit_code=3)["error"]["code"] == "E_NONFINITE"
    answer = inspect("ckpts", *MODEL, "--strip-prefix", "b.", "--allow-nonfinite")
    assert any("holds NaN or Inf in 'first.bias'" in warning for warning in answer["warnings"])


def test_pickled_modules_need_the_flag_and_a_settings_file_may_not_give_it(project):
    torch.save(net(project, 0), project / "ckpts" / "m0.pt")
    refused = inspect("ckpts", *MODEL, exit_code=3)
    assert refused["error"]["code"] == "E_UNSAFE_CHECKPOINT"
    assert "--allow-pickle" in refused["error"]["hint"]
    for name in ("allow-pickle", "trust-code"):
        (project / "ensexport.toml").write_text(f'model = "model.py:Net"\n{name} = true\n')
        with pytest.raises(ConfigError, match=f"cannot obey '{name}' .*: a settings file may not allow code"):
            Settings({}, None, ["ckpts"])


# -- artifacts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["onnx", "ts", "pt2"])
def test_an_artifact_tells_its_members_inputs_and_outputs(project, suffix):
    path = project / f"e.{suffix}"
    assert run("pack", "ckpts", *MODEL, "--input", X, "-o", path.name).exit_code == 0
    answer = inspect(path.name)
    assert answer["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [member["name"] for member in answer["members"]] == ["m0.pt", "m1.pt", "m2.pt"]
    assert (answer["inputs"], answer["outputs"], answer["n_members"]) == ([X], ["output"], 3)
    assert answer["opset"] == (20 if suffix == "onnx" else None)
    text = run("inspect", path.name).out
    assert "members (3)" in text
    assert f"  {X}\n" in text


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_an_artifact_tells_how_its_outputs_are_made_of_the_members(project, suffix):
    packing = ("pack", "ckpts", *MODEL, "--input", X, "--emit", "members,probs,entropy", "--class-axis", "1")
    assert run(*packing, "--member-weights", "0.5,0.25,0.25", "-o", f"e.{suffix}").exit_code == 0
    answer = inspect(f"e.{suffix}")
    assert answer["outputs"] == ["output", "output.probs", "output.entropy"]
    assert answer["formulas"]["output.entropy"] == "H = -sum_c p_c log p_c, in nats"
    assert (answer["member_weights"], answer["emit"][0]["class_axis"]) == ([0.5, 0.25, 0.25], 1)
    text = run("inspect", f"e.{suffix}").out
    assert re.search("^    1  m1.pt  sha256 [0-9a-f]{12}  weight 0.25$", text, re.MULTILINE)
    assert (
        "outputs, members on axis 0, made of the members' y_k with weights w_k that sum to 1\n"
        "  output          y_k\n"
        "  output.probs    p = sum_k w_k p_k\n"
        "  output.entropy  H = -sum_c p_c log p_c, in nats\n"
        "  p_k of output: softmax of y_k over axis 1 of one member's output\n"
    ) in text
    assert run(*packing, "--member-weights", "input", "-o", f"f.{suffix}").exit_code == 0
    assert inspect(f"f.{suffix}")["member_weights"] == "input"
    default = "may be left out: all alike" if suffix == "onnx" else "must be given"
    said = f"  member_weights:float32[3]  (how much each member counts; {default})\n"
    assert said in run("inspect", f"f.{suffix}").out


def test_an_artifact_tells_its_dtypes(project):
    assert run("pack", "ckpts", *MODEL, "--input", X, "--dtype", "float16", "-o", "e.ts").exit_code == 0
    assert inspect("e.ts")["dtypes"] == {"members": "float32", "inside": "float16", "io": "float32"}
    assert "dtypes: float16 inside, float32 in and out (the members: float32)\n" in run("inspect", "e.ts").out


def test_a_file_that_is_no_artifact_is_refused(project):
    (project / "e.onnx").write_bytes(b"nothing")
    assert inspect("e.onnx", exit_code=3)["error"]["code"] == "E_ARTIFACT"
    assert inspect("gone.ts", exit_code=3)["error"]["code"] == "E_ARTIFACT"
