"""The samples: what their READMEs show is what comes out, and their files run where ensexport is not."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import yaml

from tests.cli.conftest import single_threaded_processes  # noqa: F401 - fixture
from tests.cli.projects import load_factory, load_script, run
from tests.cli.readmes import SHORTER, blocks, check_block, commands, copy_samples
from tests.cli.test_deployment import FINISH, RUN_ONNX, RUN_TORCHSCRIPT
from tests.zoo.stubs import declare_if_needed

ROOT = Path(__file__).parent.parent
TORCHVISION = declare_if_needed()  # torchmetrics imports torchvision where that is installed
SAMPLES = sorted(path.name for path in (ROOT / "samples").iterdir() if path.is_dir())
FROM_THE_NETWORK = {"ani"}  # installs more than `.[dev]`: tested with weights of its own in test_sample_ani.py
SCRIPTS = {
    "train.py": ["--epochs", "1"],
    "tutorial.py": ["--calls", "2"],
    "table.py": ["--rows", "30000"],
    "run.py": ["--members", "2", "--blocks", "3", "--alternatives", "loop"],
}
PIPELINE = {"EPOCHS": "1", "BLOCKS": "5", "MIN_SPEEDUP": "1e-6:loop"}  # of samples/ci/check.sh


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the samples, which the tests below fill with files one after the other."""
    folder = tmp_path_factory.mktemp("checkout")
    copy_samples(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def digits(checkout):
    """The sample's folder with its checkpoints and its ONNX file, whichever tests this process ran before."""
    folder = checkout / "samples" / "digits"
    if not (folder / "ckpts").is_dir():
        subprocess.run([sys.executable, "train.py", "--epochs", "1"], cwd=folder, check=True, capture_output=True)
    if not (folder / "ensemble.onnx").exists():
        command = [sys.executable, "-m", "ensexport", "pack", "ckpts/", "-o", "ensemble.onnx"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def test_every_sample_is_tested():
    known = ["ani", "benchmarks", "ci", "digits", "mlflow", "ray_scoring", "scale", "serve", "signing", "tutorial"]
    assert known == SAMPLES


@pytest.fixture
def as_in_a_pipeline(monkeypatch):
    """`ensexport` and `python` are found, and a quick look is enough."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name, value in PIPELINE.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("as_in_a_pipeline")
@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in FROM_THE_NETWORK])
def test_a_sample_shows_what_its_readme_says(name, checkout, monkeypatch):
    text = (ROOT / "samples" / name / "README.md").read_text()
    assert blocks(text, "console")
    for block in blocks(text, "console"):
        monkeypatch.chdir(checkout)
        check_block(block, {**SHORTER, **SCRIPTS})


@pytest.mark.parametrize("script", sorted((ROOT / "samples").glob("*/*.sh")), ids=lambda path: path.name)
def test_a_shell_script_runs_what_the_readme_shows(script):
    subprocess.run(["sh", "-n", script], check=True)
    shown = [c.line for block in blocks((script.parent / "README.md").read_text(), "console") for c in commands(block)]
    whole = re.sub(r"\\\n +", "", script.read_text())
    lines = re.findall(r'^run (.*?)(?: "\$@")?$', whole, re.MULTILINE)
    for line in (line for line in lines if not line.startswith("ensexport bench ")):  # tested in tests/cli
        assert line.removesuffix(" --force") in [known.removesuffix(" --force") for known in shown]


@pytest.mark.usefixtures("as_in_a_pipeline")
def test_a_pipeline_fails_where_the_file_is_too_slow_and_keeps_what_was_found(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("MIN_SPEEDUP", "1e6:loop")
    monkeypatch.setenv("OUT", str(tmp_path / "found"))
    command = ["sh", "samples/ci/check.sh"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (5, "bench failed with exit code 5\n")
    found = {path.name: json.loads(path.read_text()) for path in (tmp_path / "found").glob("*.json")}
    assert [found[f"{name}.json"]["ok"] for name in ("pack", "validate", "bench")] == [True, True, False]
    assert found["bench.json"]["error"]["results"]
    assert found["bench.json"]["error"]["message"] in done.stdout


def test_the_workflow_runs_the_script_and_keeps_its_folder():
    folder = ROOT / "samples" / "ci"
    (job,) = yaml.safe_load((folder / "ensemble.yml").read_text())["jobs"].values()
    assert "sh samples/ci/check.sh" in [step.get("run") for step in job["steps"]]
    keeping = job["steps"][-1]
    assert (keeping["if"], keeping["with"]["path"]) == ("always()", "samples/ci/out/")
    script = (folder / "check.sh").read_text()
    assert "${OUT:-$here/out}" in script
    assert '--min-speedup "${MIN_SPEEDUP:-2:loop}"' in script
    assert set(re.findall(r"\$\{([A-Z_]+):-", script)) == {*PIPELINE, "OUT"}


def test_bare_pack_in_digits_is_one_json_object_and_its_files_agree_without_ensexport(digits, monkeypatch):
    folder = digits
    monkeypatch.chdir(folder)
    result = run("pack", "ckpts/", "-o", "e.onnx", "-o", "e.ts", "--json")
    assert (result.exit_code, result.answer["ok"], len(result.answer["members"])) == (0, True, 10)
    random = np.random.default_rng(0)
    images = {str(batch): random.random((batch, 8, 8), dtype=np.float32) for batch in (1, 2, 5, 64)}
    np.savez(folder / "inputs.npz", **images)
    members = []
    for index in range(10):
        member = load_factory((folder / "model.py").read_text(), "DigitsMLP")().eval()
        member.load_state_dict(torch.load(folder / "ckpts" / f"seed_{index}.pt", weights_only=True))
        members.append(member)
    for script in (RUN_ONNX.replace('"image"', '"x"'), RUN_TORCHSCRIPT):
        subprocess.run([sys.executable, "-I", "-c", script + FINISH], cwd=folder, check=True)
        with np.load(folder / "outputs.npz") as outputs, torch.no_grad():
            for name, image in images.items():
                expected = torch.stack([member(torch.from_numpy(image)) for member in members])
                assert np.allclose(outputs[name], expected, atol=1e-5)


def _by_hand(logits):
    """What the file should say of the members' `(N, B, C)` scores, in NumPy and float64."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    mean = p.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropies = -np.nan_to_num(p * np.log(p)).sum(-1)
        entropy = -np.nan_to_num(mean * np.log(mean)).sum(-1)
    vote = np.stack([(logits.argmax(-1) == c).mean(0) for c in range(logits.shape[-1])], -1)
    return {"probs": mean, "entropy": entropy, "mutual_information": entropy - entropies.mean(0), "vote": vote}


def test_digits_in_float16_say_what_numpy_says(digits, monkeypatch):
    folder = digits
    monkeypatch.chdir(folder)
    names = ("probs", "entropy", "mutual_information", "vote")
    options = ("--emit", ",".join(names), "--member-axis", "1", "--dtype", "float16")
    assert run("pack", "ckpts/", *options, "-o", "h.onnx", "-o", "h.ts", "--force").exit_code == 0
    images = load_factory((folder / "data.py").read_text(), "load")()[2]
    logits = []
    for index in range(10):
        member = load_factory((folder / "model.py").read_text(), "DigitsMLP")().eval()
        member.load_state_dict(torch.load(folder / "ckpts" / f"seed_{index}.pt", weights_only=True))
        with torch.no_grad():
            logits.append(member.double()(torch.from_numpy(images).double()).numpy())
    expected = _by_hand(np.stack(logits))
    onnx_values = ort.InferenceSession("h.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": images})
    script_values = [value.numpy() for value in load_script("h.ts")(torch.from_numpy(images))]
    for values in (onnx_values, script_values):
        for name, value in zip(names, values, strict=True):
            assert (value.dtype, value.shape) == (np.float32, expected[name].shape)
            differs = np.abs(value - expected[name])
            if name == "vote":  # where a member's two best classes are as good as equal, rounding decides
                assert (differs.max(-1) > 1e-6).mean() < 0.01
            else:
                assert differs.max() < 5e-3
        assert values[2].min() >= 0


def test_members_disagree_more_on_noise_than_on_digits(tmp_path, monkeypatch):
    """Networks that are trained in full: after one epoch they disagree on digits too."""
    copy_samples(ROOT, tmp_path)
    monkeypatch.chdir(tmp_path / "samples" / "digits")
    subprocess.run([sys.executable, "train.py", "--members", "5"], check=True, capture_output=True)
    for dtype in ("float32", "float16"):
        dtypes = ("--dtype", dtype, "--io-dtype", dtype)
        assert run("pack", "ckpts", "--emit", "mutual_information", *dtypes, "-o", f"{dtype}.onnx").exit_code == 0
        command = [sys.executable, "uncertainty.py", f"{dtype}.onnx", "--plot", "picture.svg"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert float(re.search(r"AUROC ([\d.]+)$", said)[1]) > 0.85
        assert b"<svg" in Path("picture.svg").read_bytes()[:1000]


def test_the_picture_of_the_readme_is_small():
    assert 1000 < (ROOT / "docs" / "uncertainty.svg").stat().st_size < 60_000


def test_the_test_images_are_what_the_members_curve_takes(tmp_path):
    path = tmp_path / "test.npz"
    subprocess.run([sys.executable, ROOT / "samples" / "digits" / "data.py", path], check=True, capture_output=True)
    with np.load(path) as saved:
        assert {name: (array.shape, array.dtype.name) for name, array in saved.items()} == {
            "x": ((540, 8, 8), "float32"), "labels": ((540,), "int64"),
        }  # fmt: skip


def test_evaluating_needs_neither_torch_nor_ensexport(digits):
    code = (
        "import sys, json, runpy; runpy.run_path('evaluate.py', run_name='__main__'); print(json.dumps([*sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=digits, check=True, capture_output=True, text=True)
    *said, modules = done.stdout.splitlines()
    assert not {"torch", "ensexport"} & set(json.loads(modules))
    assert float(re.search(r"ensemble accuracy: +([\d.]+)%", said[-1])[1]) > 80  # one epoch only
