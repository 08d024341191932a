"""The sample that signs: a tool that takes what it should refuse, or refuses what was signed, is reported."""

import importlib
import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import single_threaded_processes  # noqa: F401 - fixture
from tests.cli.projects import X, make_project, run

FOLDER = Path(__file__).parent.parent / "samples" / "signing"
SIGNING = str(Path(sys.executable).with_name("model_signing"))


def python(script: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, FOLDER / script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """A folder with a package, two pairs of keys, and a signature by the first."""
    folder = tmp_path_factory.mktemp("signed")
    project = make_project(folder / "project")
    for name in ("keys", "others"):
        assert python("make_keys.py", folder / name).returncode == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        options = ("--model", "model.py:Net", "--input", X, "--formats", "onnx")
        assert run("pack", "ckpts", *options, "-o", "pkg").exit_code == 0
    (project / "pkg").rename(folder / "pkg")
    command = [SIGNING, "sign", "key", "pkg", "--private_key", "keys/private.pem", "--signature", "pkg.sig"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def tamper(folder: Path, *, key: str = "keys", package: str = "pkg") -> subprocess.CompletedProcess:
    options = ("--signature", folder / "pkg.sig", "--key", folder / key / "public.pem")
    return python("tamper.py", folder / package, *options)


def test_each_change_is_found_by_the_signature_and_only_one_passes_verify(signed):
    before = {path: path.read_bytes() for path in (signed / "pkg").rglob("*") if path.is_file()}
    done = tamper(signed)
    assert (done.returncode, done.stderr) == (0, "")
    codes = [int(line.split("exit code ")[1].split(":")[0]) for line in done.stdout.splitlines() if "exit code" in line]
    assert codes == [0, 0, 1, 3, 1, 0, 1, 3]
    assert before == {path: path.read_bytes() for path in (signed / "pkg").rglob("*") if path.is_file()}


def test_a_signature_by_another_key_is_reported(signed):
    done = tamper(signed, key="others")
    assert done.returncode == 1
    assert done.stderr == "leave alone: expected exit code 0 of model-signing, got 1\n"


def test_a_package_that_is_not_the_signed_one_is_reported(signed, tmp_path):
    shutil.copytree(signed / "pkg", tmp_path / "pkg")
    manifest = json.loads((tmp_path / "pkg" / "manifest.json").read_text())
    manifest["tool"]["version"] = "9.9.9"
    (tmp_path / "pkg" / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, indent=1) + "\n")
    done = python("tamper.py", tmp_path / "pkg", "--signature", signed / "pkg.sig", "--key", signed / "keys/public.pem")
    assert done.returncode == 1
    assert done.stderr == "leave alone: expected exit code 0 of model-signing, got 1\n"


def test_the_private_key_is_its_owners_alone_and_a_new_one_replaces_it(tmp_path):
    assert python("make_keys.py", tmp_path / "keys").returncode == 0
    first = (tmp_path / "keys" / "private.pem").read_bytes()
    assert python("make_keys.py", tmp_path / "keys").returncode == 0
    assert stat.S_IMODE((tmp_path / "keys" / "private.pem").stat().st_mode) == 0o600
    assert (tmp_path / "keys" / "private.pem").read_bytes() != first


def test_one_bit_of_one_weight_is_what_is_flipped(signed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "tamper", raising=False)
    shutil.copytree(signed / "pkg", tmp_path / "pkg")
    importlib.import_module("tamper").flip_a_bit(tmp_path / "pkg")
    sys.modules.pop("tamper")
    before, after = ((folder / "pkg" / "model.onnx").read_bytes() for folder in (signed, tmp_path))
    assert len(before) == len(after)
    assert sum((a ^ b).bit_count() for a, b in zip(before, after, strict=True)) == 1
