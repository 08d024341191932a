"""docs/pipelines.md: its YAML parses, its commands exist with their options, and its Makefile runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from ensexport.cli import cli
from tests.cli.conftest import single_threaded_processes  # noqa: F401 - fixture
from tests.cli.projects import X, make_project
from tests.cli.readmes import blocks

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "pipelines.md").read_text()
WORKFLOW, GITLAB, *SERVICES = [yaml.safe_load(block) for block in blocks(TEXT, "yaml")]
(MAKEFILE,) = blocks(TEXT, "makefile")


def ensexport_lines() -> list[str]:
    """Each command of ensexport on the page: in blocks of code and in backticks."""
    text = re.sub(r"\\\n\s+", "", TEXT)
    found = re.findall(r"(?:^\s*(?:- |run: )?|`)(ensexport [^`#\n]+)", text, re.MULTILINE)
    return [re.sub(r" >.*", "", line).strip() for line in found]


@pytest.mark.parametrize("line", sorted(set(ensexport_lines())))
def test_each_command_exists_with_its_options(line):
    _, name, *arguments = shlex.split(line.replace("$(SPEEDUP)", "2:loop"))
    command = cli.get_command(None, name)
    assert command is not None
    context = click.Context(command, info_name=name)
    values, rest, _ = command.make_parser(context).parse_args(args=arguments)
    assert rest == []
    for parameter in command.params:
        if isinstance(parameter.type, click.Choice) and parameter.name in values:
            parameter.type_cast_value(context, values[parameter.name])


def test_an_option_that_does_not_exist_would_be_found():
    with pytest.raises(click.NoSuchOption):
        test_each_command_exists_with_its_options("ensexport pack ckpts/ --no-such-option")


def test_the_page_has_all_gates_in_each_pipeline():
    pages = [str(WORKFLOW), str(GITLAB), MAKEFILE]
    for page in pages:
        for command in ("ensexport pack ", "ensexport verify ", "ensexport bench ", "model_signing sign "):
            assert command in page
        assert "--min-speedup" in page
    for page in pages[:2]:
        assert "oras push" in page


def test_the_workflow_is_one_that_github_would_take():
    assert WORKFLOW[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads `on` as true
    (job,) = WORKFLOW["jobs"].values()
    assert job["permissions"] == {"contents": "read", "id-token": "write", "packages": "write"}
    assert all(("run" in step) != ("uses" in step) for step in job["steps"])
    names = [step.get("name") for step in job["steps"] if "run" in step]
    assert names == ["Install", "Pack and prove", "Verify", "Fast enough?", "Sign, without a key", "Publish"]
    keeping = job["steps"][-1]
    assert (keeping["if"], keeping["with"]["path"]) == ("always()", "*.json")
    short = yaml.safe_load((ROOT / "samples" / "ci" / "ensemble.yml").read_text())
    used = {step["uses"] for job in short["jobs"].values() for step in job["steps"] if "uses" in step}
    assert used <= {step["uses"] for step in job["steps"] if "uses" in step}


def test_the_gitlab_jobs_belong_to_its_stages():
    jobs = {name: job for name, job in GITLAB.items() if name != "stages"}
    assert [job["stage"] for job in jobs.values()] == GITLAB["stages"] == ["pack", "publish"]
    assert all(isinstance(line, str) for job in jobs.values() for line in job["script"])
    assert set(GITLAB["pack"]["artifacts"]["paths"]) == {"pkg", "pack.json", "verify.json", "bench.json"}


def test_the_services_are_kserves():
    assert len(SERVICES) == 2
    for service in SERVICES:
        assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    (container,) = SERVICES[1]["spec"]["predictor"]["containers"]
    _, script, *arguments = container["command"]
    source = (ROOT / "samples" / "serve" / script).read_text()
    assert all(f'"{option}"' in source for option in arguments if option.startswith("--"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A tiny project with the page's Makefile, a key, and the commands on the path."""
    monkeypatch.chdir(make_project(tmp_path / "project"))
    Path("Makefile").write_text(MAKEFILE)
    Path("ensexport.toml").write_text(f'model = "model.py:Net"\ninputs = ["{X}"]\n')
    scripts = Path(sys.executable).parent
    subprocess.run([sys.executable, ROOT / "samples" / "signing" / "make_keys.py", "keys"], check=True)
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KEY", "keys/private.pem")
    return tmp_path / "project"


def make(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *arguments], capture_output=True, text=True, timeout=600)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.usefixtures("project")
def test_the_makefile_packs_once_and_signs_what_is_whole_and_fast_enough():
    slow = make("release", "SPEEDUP=1e6:loop")
    assert "Error 5" in slow.stderr
    assert "ensexport pack ckpts/ -o pkg --force\n" in slow.stdout
    assert not Path("pkg.sig").exists()
    done = make("release", "SPEEDUP=1e-6:loop")
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [" ".join(line.split()[:2]) for line in said if line.startswith(("ensexport ", "model_signing "))] == [
        "ensexport verify", "ensexport bench", "model_signing sign",
    ]  # fmt: skip
    assert "\nverified: " in done.stdout
    command = ["model_signing", "verify", "key", "pkg", "--signature", "pkg.sig", "--public_key", "keys/public.pem"]
    assert "Verification succeeded" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    Path("pkg/model.onnx").write_bytes(b"tampered")
    broken = make("verify")
    assert "Error 3" in broken.stderr
    assert "model.onnx" in broken.stderr
