"""The README: its commands run, what it shows comes out, its links lead somewhere, and no option is missing."""

import re
import subprocess
from pathlib import Path

import pytest

from ensexport.cli import cli
from tests.cli.projects import make_project
from tests.cli.readmes import blocks, check_block, commands, matches

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
PAGES = ["README.md", "samples/digits/README.md", "samples/tutorial/README.md", "docs/bench.md", "docs/benchmarks.md"]
PAGES += ["docs/errors.md", "docs/outputs.md", "docs/packages.md", "docs/triton.md"]
PAGES += ["samples/ani/README.md", "samples/benchmarks/README.md", "samples/ci/README.md"]
PAGES += [f"samples/{name}/README.md" for name in ("mlflow", "ray_scoring", "serve", "signing")] + ["docs/pipelines.md"]
PAGES += ["docs/scale.md", "samples/scale/README.md", "docs/members-curve.md"]
FOLDS = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, x):
        return self.layers(x)
"""


def test_the_first_example_and_the_python_blocks_run(tmp_path, monkeypatch):
    folder = make_project(tmp_path / "project", FOLDS, n_members=5)
    (folder / "ckpts").rename(folder / "folds")
    for path in sorted((folder / "folds").iterdir()):
        path.rename(path.with_name(path.name.replace("m", "fold_")))
    monkeypatch.chdir(folder)
    first, *others = blocks(TEXT, "console")
    check_block(first)
    assert all(block.startswith("$ cd samples/") for block in others)
    namespace = {}
    for block in blocks(TEXT, "python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["mean"].shape == (8, 3)


@pytest.mark.parametrize("number", range(1, len(blocks(TEXT, "console"))))
def test_a_sample_is_shown_as_its_own_readme_shows_it(number):
    """tests/test_samples.py runs that one; here lines may be left out, as `...`."""
    first, *shown = commands(blocks(TEXT, "console")[number])
    own = (ROOT / first.line.removeprefix("cd ") / "README.md").read_text()
    known = {command.line: command.shown for block in blocks(own, "console") for command in commands(block)}
    for command in shown:
        assert command.line in known
        assert matches(command.shown, known[command.line])


@pytest.mark.parametrize("name", ["pack", "validate", "bench", "verify", "extract", "swap"])
def test_every_option_is_explained(name):
    section = TEXT.partition(f"### `ensexport {name} ")[2].partition("\n##")[0]
    assert section
    for parameter in cli.get_command(None, name).params:
        if parameter.param_type_name == "option":
            assert f"`{parameter.opts[0]}" in section


def test_no_option_is_made_up():
    known = {o for n in cli.list_commands(None) for p in cli.get_command(None, n).params for o in p.opts}
    known |= {option for parameter in cli.params for option in parameter.opts} | {"--help", "--version"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) - known == set()


def test_every_make_target_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"`make ([a-z-]+)`", (ROOT / page).read_text())}
    assert {"demo", "test", "bench", "bench-gpu", "bench-scale"} <= named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
        assert target.startswith("https://") or (ROOT / page).parent.joinpath(target).exists()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only a checkout knows which files git ignores")
def test_what_the_samples_write_is_ignored_by_git():
    written = ["digits/ckpts/seed_0.pt", "digits/ensemble.onnx", "tutorial/shared.ts", "tutorial/per_member.onnx"]
    written += ["digits/test.npz", "digits/members-curve.svg"]
    written += ["ci/out/bench.json", "benchmarks/benchmarks.md", "benchmarks/calibration_cuda.json"]
    written += ["serve/ensemble.onnx", "ray_scoring/table/part_000.parquet", "ray_scoring/scored/0.parquet"]
    written += ["mlflow/pkg/README.md", "mlflow/store/mlflow.db", "signing/keys/private.pem", "signing/pkg.sig"]
    written += ["scale/scale.json", "scale/work/scale-x/packed/ensemble.onnx"]
    command = ["git", "check-ignore", *(f"samples/{name}" for name in written)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split() == command[2:]
