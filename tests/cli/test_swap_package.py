"""`swap` on package folders: every model, the samples, the kept tensors and the manifest follow."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ensexport.package.manifest import read_manifest
from tests.cli.projects import change_state, make_project, run, run_process, snapshot

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
MODEL = ("--model", "model.py:Net")
INPUT = ("--input", "x:float32[batch,1,6,6]")
PACKS = {
    "members": (),
    "combined": ("--emit", "probs,entropy"),
    "half": ("--dtype", "float16", "--io-dtype", "float16"),
    "all-formats": ("--formats", "onnx,ts,pt2", "--external-data"),
    "triton": ("--layout", "triton", "--name", "net"),
    "triton-ts": ("--layout", "triton", "--name", "net", "--formats", "ts"),
    "unproven": ("--validate-members", "none"),
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A project of four checkpoints with norms that are folded, and a new one."""
    folder = make_project(tmp_path_factory.mktemp("swap") / "project", CONV, n_members=5)
    for path in sorted((folder / "ckpts").iterdir()):
        seed = int(path.stem[1:])

        def trained(state, seed=seed):
            generator = torch.Generator().manual_seed(seed)
            state["norm.running_mean"].normal_(generator=generator)
            state["norm.num_batches_tracked"].fill_(seed)

        change_state(path, trained)
    (folder / "ckpts" / "m4.pt").rename(folder / "new.pt")
    return folder


@pytest.fixture
def project(bare, tmp_path, monkeypatch):
    """A copy of it, the current directory."""
    shutil.copytree(bare, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def pack(*options, to="pkg", fresh=False):
    """Pack here, or in a process of its own: torch numbers the classes of TorchScript, one process through."""
    arguments = ("pack", "ckpts", *MODEL, *INPUT, "-o", to, *options)
    result = run_process(*arguments, cwd=Path()) if fresh else run(*arguments)
    assert result.exit_code == 0, result.err


def models_of(folder):
    kinds = ("onnx", "onnx_data", "torchscript", "pt2", "state")
    return {entry["path"]: entry["sha256"] for entry in read_manifest(folder)["files"] if entry["format"] in kinds}


@pytest.mark.parametrize("options", PACKS.values(), ids=PACKS)
def test_a_swapped_package_equals_a_fresh_one(project, options):
    """Every model and the kept tensors to the byte, if the checkpoint has the same name; `verify` takes it."""
    inside = "net" if "triton" in options else "."
    pack(*options, fresh=True)
    shutil.move("new.pt", "ckpts/m2.pt")
    pack(*options, to="fresh", fresh=True)
    Path("out").mkdir()
    where = Path("out") / ("net" if "triton" in options else "pkg")
    result = run("swap", Path("pkg") / inside, "--member", 2, "ckpts/m2.pt", *MODEL, "-o", where, "--json")
    assert result.exit_code == 0, result.out
    swapped, fresh = read_manifest(where), read_manifest(Path("fresh") / inside)
    assert swapped["members"] == fresh["members"]
    assert models_of(where) == models_of(Path("fresh") / inside)
    verified = run("verify", where, "--trust-code")
    assert verified.exit_code == 0, verified.err
    if "ts" not in options:
        checked = run("validate", where, "ckpts", *MODEL)
        assert checked.exit_code == 0, checked.err


def test_a_triton_model_keeps_its_name(project):
    pack("--layout", "triton", "--name", "net")
    result = run("swap", "pkg/net", "--member", 0, "new.pt", *MODEL, "-o", "other")
    assert result.exit_code == 2
    assert "cannot write 'other': expected a folder 'net'" in result.err
    result = run("swap", "pkg/net", "--member", 0, "new.pt", *MODEL, "-o", "pkg/net", "--force")
    assert result.exit_code == 0, result.err
    assert [path.name for path in Path("pkg").iterdir()] == ["net"]


def test_the_samples_and_the_kept_tensors_are_the_new_member_s(project):
    pack()
    before = read_manifest(project / "pkg")
    assert run("swap", "pkg", "--member", 1, "new.pt", *MODEL, "-o", "swapped").exit_code == 0
    after = read_manifest(project / "swapped")
    assert {sample["expected_from"] for sample in after["samples"]} == {"loop"}
    assert [sample["inputs"] for sample in after["samples"]] == [sample["inputs"] for sample in before["samples"]]
    kept = load_state("swapped/state.safetensors")
    source = torch.load("new.pt", weights_only=True)
    own = {name.removeprefix("1."): tensor for name, tensor in kept.items() if name.startswith("1.")}
    assert {"conv.weight", "norm.running_mean", "norm.num_batches_tracked"} <= own.keys()
    for name, tensor in own.items():
        assert torch.equal(tensor, source[name]), name
    old = load_state("pkg/state.safetensors")
    assert all(torch.equal(kept[name], old[name]) for name in kept if not name.startswith("1."))


def load_state(path):
    import safetensors.torch

    return safetensors.torch.load_file(path)


def test_the_manifest_tells_of_the_swap(project):
    pack()
    result = run("swap", "pkg", "--member", 3, "new.pt", *MODEL, "-o", "pkg", "--force", "--json")
    assert result.exit_code == 0, result.out
    manifest = read_manifest(project / "pkg")
    (swap,) = manifest["swaps"]
    assert (swap["member_index"], swap["name"], swap["replaced"]["name"]) == (3, "new.pt", "m3.pt")
    assert swap["validation"]["passed"] is True
    assert swap["validation"]["members"] == [3]
    assert {row["file"] for row in swap["validation"]["table"]} == {"model.onnx", "model.ts"}
    assert manifest["members"][3]["sha256"] == hashlib.sha256((project / "new.pt").read_bytes()).hexdigest()
    assert "Member 3 was replaced afterwards, by new.pt." in (project / "pkg" / "README.md").read_text()
    package = result.answer["artifacts"][0]
    digest = hashlib.sha256((project / "pkg" / "manifest.json").read_bytes()).hexdigest()
    assert (package["path"], package["format"], package["sha256"]) == ("pkg", "package", digest)
    assert not [path for path in project.iterdir() if path.name.startswith(".")]


def test_a_tampered_package_is_not_vouched_for(project):
    pack("--formats", "onnx")
    content = bytearray((project / "pkg" / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (project / "pkg" / "model.onnx").write_bytes(bytes(content))
    before = snapshot(project)
    result = run("swap", "pkg", "--member", 0, "new.pt", *MODEL, "-o", "swapped")
    assert result.exit_code == 3
    assert "model.onnx" in result.err
    assert snapshot(project) == before


REFUSED = {
    "suffix": (("pkg", "--member", 0, "new.pt", "-o", "e.onnx"), 2, "expected a folder, as 'pkg' is one"),
    "no-such-member": (
        ("pkg", "--member", 4, "new.pt", "-o", "out"),
        2,
        "there is no member 4 in 'pkg': expected 0 to 3",
    ),
    "exists": (("pkg", "--member", 0, "new.pt", "-o", "pkg"), 7, "cannot write 'pkg': it exists"),
    "no-package": (("ckpts", "--member", 0, "new.pt", "-o", "out"), 3, "it holds no manifest.json"),
    "narrow": (("pkg", "--member", 0, "narrow.pt", "-o", "out"), 4, "conv.weight"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_swapped_leaves_everything_as_it_was(project, arguments, code, message):
    pack("--formats", "onnx")
    state = torch.load("new.pt", weights_only=True)
    torch.save({**state, "conv.weight": state["conv.weight"][:2]}, "narrow.pt")
    before = snapshot(project)
    result = run("swap", *arguments, *MODEL)
    assert (result.exit_code, snapshot(project)) == (code, before)
    assert message in result.err


def test_a_sample_follows_the_loop_in_float64(project):
    pack("--formats", "onnx")
    assert run("swap", "pkg", "--member", 0, "new.pt", *MODEL, "-o", "swapped").exit_code == 0
    from ensexport.package.samples import read_sample
    from tests.cli.projects import load_factory

    net = load_factory(CONV)().eval().double()
    net.load_state_dict(torch.load("new.pt", weights_only=True))
    folder = project / "swapped" / "test_data_set_0"
    inputs = read_sample(folder, "input", ["x"])["x"]
    with torch.no_grad():
        expected = net(torch.from_numpy(inputs.astype(np.float64))).numpy().astype(np.float32)
    np.testing.assert_array_equal(read_sample(folder, "output", ["output"])["output"][0], expected)


def test_a_sample_that_the_new_member_answers_otherwise_is_a_mismatch(project, monkeypatch):
    """What is stored must not become the file's own answer without a word."""
    from ensexport.swapping.package import PackageSwap

    pack("--formats", "onnx")
    expected = PackageSwap._expected
    monkeypatch.setattr(
        PackageSwap, "_expected", lambda *given: {name: 1.01 * array for name, array in expected(*given).items()}
    )
    before = snapshot(project)
    result = run("swap", "pkg", "--member", 1, "new.pt", *MODEL, "-o", "swapped")
    assert (result.exit_code, snapshot(project)) == (5, before)
    assert "output 'output' of 'swapped' differs from the baseline on the stored sample 'test_data_set_0'" in result.err
