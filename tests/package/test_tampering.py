"""Every way to spoil a package is found before a session is made: the process that looks has no ONNX Runtime."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from tests.package.builder import build_package
from tests.package.tampering import CASES, RESEALED

# A module that is None in sys.modules cannot be imported, as if it were not installed.
SCRIPT = """
import contextlib, io, json, sys
for name in ("torch", "onnxruntime"):
    sys.modules[name] = None
from ensexport.cli import cli
answers = []
for package in json.load(sys.stdin):
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out):
        try:
            cli.main(["verify", package, "--json"])
        except SystemExit as stop:
            code = stop.code
    answers.append([code, out.getvalue()])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {
        "folder": build_package(folder / "folder", formats=("onnx", "ts", "pt2")),
        "external": build_package(folder / "external", external=True),
        "triton": build_package(folder / "triton", formats=("onnx", "ts"), layout="triton"),
    }


@pytest.fixture(scope="module")
def answers(bases, tmp_path_factory):
    """Name of a case -> exit code and answer; all in one process."""
    folder, packages = tmp_path_factory.mktemp("spoiled"), {}
    for number, (name, case) in enumerate(CASES.items()):
        packages[name] = folder / f"package-{number}"
        shutil.copytree(bases[case.base], packages[name])
        case.spoil(packages[name])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps([str(path) for path in packages.values()]),
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    results = json.loads(done.stdout)
    return {name: (code, json.loads(text)) for name, (code, text) in zip(packages, results, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_a_spoiled_package_is_refused_before_anything_runs(name, answers):
    case, (code, answer) = CASES[name], answers[name]
    assert (code, answer["ok"]) == (3, False), answer
    error = answer["error"]
    assert error["code"] == "E_PACKAGE"
    said = json.dumps(error.get("problems", []), ensure_ascii=False) + error["message"]
    assert any(part in said or ascii(part)[1:-1] in said for part in case.names.split("|"))
    texts = [f"{p['path']}: {p['problem']}" if isinstance(p, dict) else p for p in error.get("problems", [])]
    assert any(re.search(case.text, text) for text in [*texts, error["message"]]), said
    assert error["hint"]


def test_there_are_many_ways():
    assert len(CASES) >= 100
    assert len(RESEALED) >= 30


def test_all_that_is_wrong_is_found(bases, tmp_path):
    from ensexport.errors import PackageError
    from ensexport.package.integrity import check_package

    folder = shutil.copytree(bases["folder"], tmp_path / "p")
    names = ["flip-model.onnx", "flip-README.md", "extra", "missing", "pipe-extra", "member-name", "hard-link-manifest"]
    for name in names:
        CASES[name].spoil(folder)
    with pytest.raises(PackageError, match=r"'.*p' is not what its manifest says \(\d problems\)") as caught:
        check_package(folder)
    found = {problem["path"] for problem in caught.value.details["problems"]}
    assert found == {"model.onnx", "README.md", "notes.txt", "model.ts", "p", "model.pt2", "manifest.json"}
