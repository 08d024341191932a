"""`pack -o FOLDER` and `--layout triton`: what is written, where, and how it is reported."""

import hashlib
import json
import os
import shutil

import numpy as np
import onnxruntime as ort
import pytest

from ensexport.package.manifest import read_manifest
from ensexport.package.samples import read_sample
from tests.cli.projects import X, load_script, make_project, run, run_process, snapshot

MODEL = ("--model", "model.py:Net", "--input", X)
CONV = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with a package, packed once; answers of the command line."""
    folder = make_project(tmp_path_factory.mktemp("package") / "project")
    model = ("--model", f"{folder}/model.py:Net", "--input", X)
    result = run("pack", folder / "ckpts", *model, "-o", folder / "pkg", "--json")
    assert result.exit_code == 0, result.out
    return folder, result.answer


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    """A copy of it, to be changed; the current directory."""
    shutil.copytree(made[0], tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_package_holds_models_samples_card_and_manifest(made):
    folder, _ = made
    sets = [f"test_data_set_{k}/{kind}_0.pb" for k in (0, 1) for kind in ("input", "output")]
    assert files_of(folder / "pkg") == ["README.md", "manifest.json", "model.onnx", "model.ts", *sets]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_every_file_is_in_the_manifest_with_its_digest(made):
    folder, _ = made
    manifest = read_manifest(folder / "pkg")
    assert [entry["path"] for entry in manifest["files"]] == [
        name for name in files_of(folder / "pkg") if name != "manifest.json"
    ]
    for entry in manifest["files"]:
        content = (folder / "pkg" / entry["path"]).read_bytes()
        assert (entry["size_bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_manifest_says_what_was_packed(made):
    folder, answer = made
    manifest = read_manifest(folder / "pkg")
    assert (manifest["layout"], manifest["name"], manifest["n_members"], manifest["opset"]) == ("folder", None, 3, 20)
    for member, taken in zip(manifest["members"], answer["members"], strict=True):
        assert member["name"] == f"m{member['index']}.pt"
        for name in ("sha256", "container_key", "stripped_prefix"):
            assert member[name] == taken[name]
    assert manifest["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": ["batch", 4], "is_per_member": False, "is_optional": False}
    ]
    assert manifest["outputs"] == [{"name": "output", "dtype": "float32", "shape": [3, "batch", 3], "formula": "y_k"}]
    assert manifest["validation"]["passed"] is True
    assert {row["file"] for row in manifest["validation"]["table"]} == {"model.onnx", "model.ts"}
    assert sum(row["comparisons"] for row in manifest["validation"]["table"]) == len(answer["validation"]["checks"])
    assert str(folder) not in (folder / "pkg" / "manifest.json").read_text()


def test_the_answer_names_the_package_first_then_its_files(made):
    folder, answer = made
    package, *files = answer["artifacts"]
    digest = hashlib.sha256((folder / "pkg" / "manifest.json").read_bytes()).hexdigest()
    assert (package["path"], package["format"], package["sha256"]) == (str(folder / "pkg"), "package", digest)
    assert package["size_bytes"] == sum(file["size_bytes"] for file in files)
    assert sorted(file["path"] for file in files) == [str(folder / "pkg" / name) for name in files_of(folder / "pkg")]


def test_the_samples_are_what_the_files_return(made):
    folder, _ = made
    session = ort.InferenceSession(folder / "pkg" / "model.onnx", providers=["CPUExecutionProvider"])
    script = load_script(folder / "pkg" / "model.ts")
    for sample in read_manifest(folder / "pkg")["samples"]:
        assert sample["expected_from"] == "loop"
        inputs = read_sample(folder / "pkg" / sample["folder"], "input", ["x"])
        outputs = read_sample(folder / "pkg" / sample["folder"], "output", ["output"])
        (actual,) = session.run(None, inputs)
        np.testing.assert_allclose(actual, outputs["output"], rtol=1e-4, atol=1e-6)
        import torch

        scripted = script(torch.from_numpy(inputs["x"].copy())).numpy()
        np.testing.assert_allclose(scripted, outputs["output"], rtol=1e-4, atol=1e-6)


def test_the_text_lists_the_package_and_its_models(project):
    result = run("pack", "ckpts", *MODEL, "-o", "again/", "--formats", "onnx,pt2")
    assert result.exit_code == 0, result.err
    lines = result.out.partition("artifacts\n")[2].splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["again", "again/model.onnx", "again/model.pt2"]


def test_files_and_a_package_in_one_run(project):
    result = run("pack", "ckpts", *MODEL, "-o", "e.ts", "-o", "both", "--formats", "onnx", "--json")
    assert result.exit_code == 0, result.out
    assert {check["artifact"] for check in result.answer["validation"]["checks"]} == {"e.ts", "both/model.onnx"}
    table = read_manifest(project / "both")["validation"]["table"]
    assert {row["file"] for row in table} == {"model.onnx"}


def test_an_existing_package_needs_force_and_is_replaced_whole(project):
    before = snapshot(project)
    result = run("pack", "ckpts", *MODEL, "-o", "pkg")
    assert result.exit_code == 7
    assert "cannot write 'pkg': it exists" in result.err
    assert snapshot(project) == before
    result = run("pack", "ckpts", *MODEL, "-o", "pkg", "--formats", "onnx", "--force")
    assert result.exit_code == 0, result.err
    assert "model.ts" not in files_of(project / "pkg")


def test_a_folder_of_others_is_never_replaced(project):
    (project / "mine").mkdir()
    (project / "mine" / "thesis.tex").write_text("years")
    before = snapshot(project)
    result = run("pack", "ckpts", *MODEL, "-o", "mine", "--force")
    assert result.exit_code == 7
    assert "cannot write 'mine': it is a folder without a manifest.json of ensexport" in result.err
    assert snapshot(project) == before


def test_validate_compares_every_model_of_a_package(project):
    result = run("validate", "pkg", "ckpts", "--model", "model.py:Net", "--json")
    assert result.exit_code == 0, result.out
    artifacts = {check["artifact"] for check in result.answer["validation"]["checks"]}
    assert artifacts == {"pkg/model.onnx", "pkg/model.ts"}
    shutil.copy("ckpts/m0.pt", "ckpts/m1.pt")
    result = run("validate", "pkg", "ckpts", "--model", "model.py:Net")
    assert result.exit_code == 5
    assert "member 1" in result.err


def test_validate_of_a_folder_that_is_no_package_says_so(project):
    result = run("validate", "ckpts", "ckpts", "--model", "model.py:Net")
    assert result.exit_code == 3
    assert "cannot read 'ckpts' as a package: it holds no manifest.json" in result.err


def test_bench_times_the_onnx_file_of_a_package(project):
    result = run("bench", "pkg", "ckpts", "--model", "model.py:Net", "--batch", "1", "--blocks", "3",
                 "--alternatives", "loop", "--json")  # fmt: skip
    assert result.exit_code == 0, result.out
    assert result.answer["artifact"] == "pkg/model.onnx"


def test_a_package_that_was_not_proven_says_so(project):
    result = run("pack", "ckpts", *MODEL, "-o", "unproven", "--validate-members", "none")
    assert result.exit_code == 0, result.err
    manifest = read_manifest(project / "unproven")
    assert (manifest["validation"]["passed"], manifest["validation"]["members"]) == (None, [])
    assert {sample["expected_from"] for sample in manifest["samples"]} == {"file"}
    assert "NONE: nothing was compared" in (project / "unproven" / "README.md").read_text()


def test_external_data_on_request(project):
    result = run("pack", "ckpts", *MODEL, "-o", "large", "--external-data", "-o", "e.onnx", "--json")
    assert result.exit_code == 0, result.out
    assert {"model.onnx", "model.onnx.data"} < set(files_of(project / "large"))
    formats = {a["path"]: a["format"] for a in result.answer["artifacts"]}
    assert (formats["e.onnx.data"], formats["large/model.onnx.data"]) == ("onnx_data", "onnx_data")
    assert run("validate", "large", "ckpts", "--model", "model.py:Net").exit_code == 0


def test_a_triton_repository_gets_one_model_after_the_other(project):
    triton = ("-o", "repo", "--layout", "triton")
    first = run("pack", "ckpts", *MODEL, *triton, "--name", "fraud", "--json")
    assert first.exit_code == 0, first.out
    assert sorted(os.listdir(project / "repo")) == ["fraud"]
    manifest = read_manifest(project / "repo" / "fraud")
    assert (manifest["layout"], manifest["name"], manifest["member_axis"]) == ("triton", "fraud", 1)
    assert manifest["outputs"][0]["shape"] == ["batch", 3, 3]
    assert {"config.pbtxt", "1/model.onnx", "warmup/input_0.bin"} < set(files_of(project / "repo" / "fraud"))
    second = run("pack", "ckpts", *MODEL, *triton, "--name", "spam", "--formats", "ts", "--json")
    assert second.exit_code == 0, second.out
    assert sorted(os.listdir(project / "repo")) == ["fraud", "spam"]
    assert "1/model.pt" in files_of(project / "repo" / "spam")
    assert 'platform: "pytorch_libtorch"' in (project / "repo" / "spam" / "config.pbtxt").read_text()
    again = run("pack", "ckpts", *MODEL, *triton, "--name", "fraud")
    assert again.exit_code == 7
    assert "cannot write 'repo/fraud': it exists" in again.err
    assert run("pack", "ckpts", *MODEL, *triton, "--name", "fraud", "--force").exit_code == 0


def test_external_data_goes_into_a_folder_that_triton_takes_for_the_model(project):
    result = run("pack", "ckpts", *MODEL, "-o", "repo", "--layout", "triton", "--name", "a", "--external-data")
    assert result.exit_code == 0, result.err
    model = project / "repo" / "a" / "1" / "model.onnx"
    assert files_of(model) == ["model.onnx", "model.onnx.data"]
    assert run("validate", "repo/a", "ckpts", "--model", "model.py:Net").exit_code == 0


def test_a_model_repository_is_not_made_in_a_package(project):
    before = snapshot(project)
    result = run("pack", "ckpts", *MODEL, "-o", "pkg", "--layout", "triton", "--name", "a")
    assert (result.exit_code, snapshot(project)) == (2, before)
    assert "'pkg' is a package, not a model repository" in result.err


def test_settings_can_say_what_a_package_holds(project):
    lines = ['layout = "triton"', 'name = "spam"', 'labels = "names.txt"', "max-batch-size = 4", 'emit = "probs"']
    (project / "ensexport.toml").write_text("\n".join(lines))
    (project / "names.txt").write_text("a\nb\nc\n")
    result = run("pack", "ckpts", *MODEL, "-o", "repo")
    assert result.exit_code == 0, result.err
    config = (project / "repo" / "spam" / "config.pbtxt").read_text()
    assert "max_batch_size: 4" in config
    assert 'label_filename: "labels.txt"' in config


ENVIRONMENTS = [
    {"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C"},
    {"PYTHONHASHSEED": "4242", "TZ": "Pacific/Kiritimati", "LC_ALL": "C.UTF-8"},
]


def test_two_builds_elsewhere_are_byte_identical(tmp_path):
    """Another folder, output name, hash seed, time zone and locale."""
    packages = []
    for number, environment in enumerate(ENVIRONMENTS):
        folder = make_project(tmp_path / f"build_{number}" / "somewhere"[: 4 + number], CONV)
        result = run_process(
            "pack", "ckpts", "--model", "model.py:Net", "--input", "x:float32[batch,1,6,6]", "-o", f"pkg{number}",
            "--formats", "onnx,ts,pt2", "--emit", "members,probs", "--json",
            cwd=folder, env={**os.environ, **environment, "SOURCE_DATE_EPOCH": "1700000000"},
        )  # fmt: skip
        assert result.exit_code == 0, result.out
        packages.append(snapshot(folder / f"pkg{number}"))
    assert packages[0].keys() == packages[1].keys()
    assert [name for name in packages[0] if packages[0][name] != packages[1][name]] == []
    assert json.loads(packages[0]["manifest.json"])["created"] == "2023-11-14T22:13:20Z"


def test_inputs_of_the_users_own_are_the_first_sample(project):
    inputs = np.linspace(-3, 3, 80, dtype=np.float32).reshape(20, 4)
    np.savez("real.npz", x=inputs, labels=np.zeros(20, np.int64))
    result = run("pack", "ckpts", *MODEL, "-o", "real", "--sample-inputs", "real.npz", "--formats", "onnx", "--json")
    assert result.exit_code == 0, result.out
    first, second = read_manifest(project / "real")["samples"]
    assert (first["source"], first["batch"], first["expected_from"]) == ("real.npz", 8, "loop")
    assert second["source"] == "seed 0"
    stored = read_sample(project / "real" / "test_data_set_0", "input", ["x"])["x"]
    np.testing.assert_array_equal(stored, inputs[:8])
    batches = {check["batch"] for check in result.answer["validation"]["checks"]}
    assert batches == {1, 2, 3, 7, 8, 13}
    assert run("verify", "real").exit_code == 0


def test_inputs_that_do_not_fit_are_refused(project):
    np.savez("wrong.npz", x=np.zeros((3, 5), np.float32))
    before = snapshot(project)
    result = run("pack", "ckpts", *MODEL, "-o", "real", "--sample-inputs", "wrong.npz")
    assert (result.exit_code, snapshot(project)) == (3, before)
    assert "the array 'x' of 'wrong.npz' does not fit the input x:float32[batch,4]" in result.err
    result = run("pack", "ckpts", *MODEL, "-o", "real", "--sample-inputs", "none.npz")
    assert result.exit_code == 3
    assert "cannot read 'none.npz': there is no such file" in result.err


def test_inputs_of_the_users_own_in_another_dtype_and_per_member(project):
    np.savez("real.npz", x=np.linspace(-1, 1, 60, dtype=np.float32).reshape(3, 5, 4))
    result = run("pack", "ckpts", *MODEL, "-o", "real", "--sample-inputs", "real.npz", "--per-member", "x",
                 "--dtype", "float16", "--io-dtype", "float16")  # fmt: skip
    assert result.exit_code == 0, result.err
    sample = read_manifest(project / "real")["samples"][0]
    assert (sample["source"], sample["batch"]) == ("real.npz", 5)
    stored = read_sample(project / "real" / "test_data_set_0", "input", ["x"])["x"]
    assert (stored.dtype, stored.shape) == (np.float16, (3, 5, 4))
    assert run("verify", "real", "--trust-code").exit_code == 0
