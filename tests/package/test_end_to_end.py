"""What `pack -o FOLDER` writes is what `verify` takes; one byte off anywhere, and it does not."""

import json
import random
import shutil
import subprocess
import sys

import pytest

from ensexport.errors import PackageError
from ensexport.package.integrity import check_package
from ensexport.package.manifest import MANIFEST
from tests.cli.projects import X, make_project, run
from tests.package.builder import read, reseal
from tests.package.test_tampering import SCRIPT

KINDS = {
    "default": ((), ("-o", "pkg"), "pkg"),
    "all-formats": ((), ("-o", "pkg", "--formats", "onnx,ts,pt2", "--emit", "members,mean"), "pkg"),
    "external-bfloat16": (("bfloat16",), ("-o", "pkg", "--formats", "onnx", "--external-data"), "pkg"),
    "triton": ((), ("-o", "repo", "--layout", "triton", "--name", "fraud", "--external-data"), "repo/fraud"),
    "not-validated": ((), ("-o", "pkg", "--formats", "onnx", "--validate-members", "none"), "pkg"),
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Kind -> a package, each packed once."""
    made = {}
    for kind, (dtype, options, name) in KINDS.items():
        folder = make_project(tmp_path_factory.mktemp("packed") / "project", dtype=(dtype or ("float32",))[0])
        target = folder / options[1]
        spec = X.replace("float32", dtype[0]) if dtype else X
        result = run("pack", folder / "ckpts", "--model", f"{folder}/model.py:Net", "--input", spec, "-o", target,
                     *options[2:])  # fmt: skip
        assert result.exit_code == 0, result.err
        made[kind] = folder / name
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_packed_is_verified(kind, packed):
    answer = run("verify", packed[kind], "--trust-code", "--json").answer
    assert answer["ok"] is True
    assert answer["checks"]
    assert answer["files"] == len(read(packed[kind])["files"])
    assert bool(answer["warnings"]) == (kind == "not-validated")


def test_none_of_it_needs_torch(packed):
    script = SCRIPT.replace('("torch", "onnxruntime")', '("torch",)')
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps([str(path) for path in packed.values()]), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    answers = [(code, json.loads(text)) for code, text in json.loads(done.stdout)]
    assert [code for code, _ in answers] == [0] * len(KINDS)
    assert all(answer["checks"] for _, answer in answers)


@pytest.mark.parametrize("kind", KINDS)
def test_one_byte_flipped_in_any_file_is_found_and_the_file_named(kind, packed, tmp_path):
    draw = random.Random(kind)
    for entry in read(packed[kind])["files"]:
        folder = shutil.copytree(packed[kind], tmp_path / entry["sha256"])
        content = bytearray((folder / entry["path"]).read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (folder / entry["path"]).write_bytes(content)
        error = run("verify", folder, "--json").error
        assert error["code"] == "E_PACKAGE"
        assert [problem["path"] for problem in error["problems"]] == [entry["path"]]


def is_taken(folder):
    """Does the check end well, or as it should where it does not?"""
    try:
        check_package(folder)
    except PackageError:
        return False
    return True


def test_a_manifest_with_any_byte_changed_is_read_or_refused_and_never_a_crash(packed, tmp_path):
    folder = shutil.copytree(packed["all-formats"], tmp_path / "p")
    original = (folder / MANIFEST).read_bytes()
    draw, taken = random.Random(0), 0
    for _ in range(300):
        content = bytearray(original)
        content[draw.randrange(len(content))] = draw.randrange(256)
        (folder / MANIFEST).write_bytes(content)
        taken += is_taken(folder)
    assert taken < 150  # a digit of a version, a letter of a formula: what no file contradicts


def test_a_manifest_with_any_value_replaced_is_read_or_refused_and_never_a_crash(packed, tmp_path):
    folder = shutil.copytree(packed["all-formats"], tmp_path / "p")
    original = (folder / MANIFEST).read_text()
    draw, taken = random.Random(1), 0
    values = [None, True, 0, -1, 2, 1.5, 10**18, "", "x", "output", "../x", [], [[]], {}, {"a": 1}, ["batch", 4]]
    values += ["\ud800", "\u202e"]
    for _ in range(300):
        manifest = json.loads(original)
        place = manifest
        while True:
            key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not (isinstance(place[key], dict | list) and place[key] and draw.random() < 0.8):
                break
            place = place[key]
        place[key] = draw.choice(values)
        (folder / MANIFEST).write_text(json.dumps(manifest))
        taken += is_taken(folder)
    assert taken < 150


@pytest.mark.parametrize("path", ["model.onnx", "model.ts", "model.pt2", "test_data_set_0/output_0.pb"])
def test_a_file_with_any_bytes_changed_and_the_manifest_with_it_is_never_a_crash(path, packed, tmp_path):
    folder = shutil.copytree(packed["all-formats"], tmp_path / "p")
    original = (folder / path).read_bytes()
    draw, refused = random.Random(path), 0
    for _ in range(100):
        content = bytearray(original)
        for _ in range(draw.choice([1, 1, 8])):
            content[draw.randrange(len(content))] = draw.randrange(256)
        (folder / path).write_bytes(content[: draw.choice([len(content), len(content), draw.randrange(len(content))])])
        reseal(folder)
        refused += not is_taken(folder)
    assert refused
