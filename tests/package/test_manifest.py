"""The manifest: its text, and what is refused."""

import json
import os
import subprocess
import sys

import jsonschema
import pytest

from ensexport.errors import PackageError
from ensexport.package import manifest as module
from ensexport.package.manifest import MANIFEST, is_package, manifest_text, read_manifest
from tests.package.manifests import SHA, make_manifest

PLACES = [("files", 1, "path"), ("files", 1, "sha256"), ("files", 1, "size_bytes"), ("samples", 0, "folder")]


def write(folder, content):
    folder.mkdir(exist_ok=True)
    text = content if isinstance(content, str | bytes) else manifest_text(content)
    (folder / MANIFEST).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def changed(place, value):
    manifest = make_manifest()
    *way, last = place
    target = manifest
    for step in way:
        target = target[step]
    if value is DELETE:
        del target[last]
    else:
        target[last] = value
    return manifest


DELETE = object()


def test_what_is_written_is_read_back(tmp_path):
    manifest = make_manifest()
    assert read_manifest(write(tmp_path / "p", manifest)) == manifest
    assert is_package(tmp_path / "p")


def test_the_schema_is_one():
    schema = json.loads(module._SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(make_manifest(), schema)


def test_the_text_is_the_same_whatever_the_order_of_the_keys():
    manifest = make_manifest()
    text = manifest_text(manifest)
    assert text == manifest_text(dict(reversed(manifest.items())))
    assert text.endswith("}\n")
    assert text.startswith('{\n "dims"')
    with pytest.raises(ValueError, match="Out of range float"):
        manifest_text(make_manifest(dims={"batch": [float("nan"), None]}))


@pytest.mark.parametrize("name", ["ünï ©.pt", "fold\n1.pt", os.fsdecode(b"m\xff.pt"), "\U0001f600"], ids=ascii)
def test_names_of_all_kinds_survive(name, tmp_path):
    manifest = changed(("members", 0, "name"), name)
    folder = write(tmp_path / "p", manifest)
    assert read_manifest(folder)["members"][0]["name"] == name
    json.loads((folder / MANIFEST).read_text("utf-8"))


WRONG = {
    "missing-key": (("n_members",), DELETE, "'n_members' is a required property"),
    "unknown-key": (("extra",), 1, "'extra' was unexpected"),
    "unknown-key-inside": (("files", 0, "mode"), 1, r"files\[0\]: .*'mode' was unexpected"),
    "short-sha256": (("files", 1, "sha256"), "ab", r"files\[1\].sha256: 'ab'"),
    "upper-sha256": (("files", 1, "sha256"), "A" * 64, r"files\[1\].sha256"),
    "sha256-with-line-end": (("files", 1, "sha256"), SHA + "\n", r"files\[1\].sha256"),
    "size-below-zero": (("files", 1, "size_bytes"), -1, r"files\[1\].size_bytes: -1"),
    "size-as-float": (("files", 1, "size_bytes"), 1.0, r"files\[1\].size_bytes: 1.0"),
    "size-as-text": (("files", 1, "size_bytes"), "1", r"files\[1\].size_bytes"),
    "size-as-bool": (("files", 1, "size_bytes"), True, r"files\[1\].size_bytes"),
    "unknown-format": (("files", 0, "format"), "tflite", r"files\[0\].format"),
    "no-members": (("members",), [], r"members: \[\]"),
    "not-passed": (("validation", "passed"), False, "validation.passed"),
    "row-not-passed": (("validation", "table", 0, "passed"), False, r"validation.table\[0\].passed"),
    "negative-bound": (("samples", 0, "outputs", 0, "bound"), -1e-5, r"samples\[0\].outputs\[0\].bound"),
    "other-tool": (("tool", "name"), "other", "tool.name: 'ensexport' was expected"),
    "version-0": (("schema_version",), 0, "schema_version: 1 was expected"),
    "version-text": (("schema_version",), "2", "schema_version"),
    "later": (("schema_version",), 2, "it is of schema version 2: expected 1"),
    "created-elsewhere": (("created",), "yesterday", "created: 'yesterday'"),
    "n-members": (("n_members",), 3, r"members: expected the indices 0 to 2 in order, got 0, 1"),
    "index-twice": (("members", 1, "index"), 0, r"members: expected the indices 0 to 1 in order, got 0, 0"),
    "no-model": (("files", 1, "format"), "card", "files: no model is listed"),
    "no-opset": (("opset",), None, "opset: it is None, and an ONNX file is listed"),
    "not-sorted": (("files", 0, "path"), "z.md", "files: 'model.onnx' stands behind 'z.md'"),
    "twice": (("files", 0, "path"), "model.onnx", "files: 'model.onnx' is listed twice"),
    "itself": (("files", 0, "path"), MANIFEST, "files: manifest.json lists itself"),
    "data-of-nothing": (("files", 0), {"path": "m.onnx.data", "format": "onnx_data", "size_bytes": 1, "sha256": SHA},
                        "'m.onnx.data' holds the weights of no ONNX file"),
    "table-of-no-model": (("validation", "table", 0, "file"), "other.onnx", "'other.onnx' is no model that is listed"),
    "validated-others": (("validation", "members"), [0, 2], "validation.members: expected numbers below 2"),
    "sample-not-listed": (("files", 2, "path"), "test_data_set_0/input_00.pb",
                          "'test_data_set_0/input_0.pb' is not listed among the files as a sample"),
    "sample-elsewhere": (("samples", 0, "inputs", 0, "path"), "README.md",
                         "expected the path 'test_data_set_0/input_0"),
    "sample-of-no-output": (("samples", 0, "outputs", 0, "name"), "y", "'y' is none of the package's outputs"),
    "sample-without-input": (("samples", 0, "inputs"), [], "the input 'x' is missing"),
    "sample-unused": (("samples",), [], "files: no sample names 'test_data_set_0/input_0.pb'"),
    "swap-of-no-member": (("swaps",), [
        {"member_index": 2, "name": "new.pt", "replaced": {"name": "m2.pt", "sha256": SHA, "weights_sha256": SHA},
         "validation": make_manifest()["validation"]}], r"swaps\[0\].member_index: expected less than 2, got 2"),
    "output-twice": (("outputs",), make_manifest()["outputs"] * 2, "outputs: 'output' is there twice"),
}  # fmt: skip


@pytest.mark.parametrize(("place", "value", "text"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_and_the_place_is_named(place, value, text, tmp_path):
    folder = write(tmp_path / "p", changed(place, value))
    with pytest.raises(PackageError, match=text) as caught:
        read_manifest(folder)
    assert "manifest.json" in caught.value.message
    assert caught.value.hint


PATHS = ["/etc/passwd", "../model.onnx", "a/../model.onnx", "a/..", "./model.onnx", "a//model.onnx", "a/", "", ".",
         "..", "C:/model.onnx", "C:model.onnx", "a\\model.onnx", "..\\model.onnx", "model.onnx\n", "a\0b", "a\x7f",
         "\\\\host\\x", "a" * 1001]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=ascii)
def test_a_path_that_leaves_the_folder_is_refused(path, tmp_path):
    with pytest.raises(PackageError, match=r"files\[1\].path"):
        read_manifest(write(tmp_path / "p", changed(("files", 1, "path"), path)))


@pytest.mark.parametrize(
    "path", ["model.onnx", "1/model.onnx/model.onnx", "..a/b..", "...", ".hidden", "ü/é x"], ids=ascii
)
def test_other_paths_are_taken(path, tmp_path):
    manifest = changed(("files", 1, "path"), path)
    manifest["files"].sort(key=lambda entry: entry["path"])
    manifest["validation"]["table"] = []
    assert path in [entry["path"] for entry in read_manifest(write(tmp_path / "p", manifest))["files"]]


TEXTS = {
    "empty": (b"", "it is no JSON"),
    "cut": (manifest_text(make_manifest())[:-200].encode(), "it is no JSON"),
    "list": (b"[]", "expected a JSON object, got list"),
    "key-twice": (manifest_text(make_manifest()).replace('"opset": 20', '"opset": 20, "opset": 20').encode(),
                  "the key 'opset' is there twice"),
    "nan": (b'{"n_members": NaN}', "NaN is no JSON number"),
    "inf": (b'{"n_members": 1e999}', "beyond a float64"),
    "digits": (b'{"n_members": ' + b"1" * 5000 + b"}", "has 5000 digits"),
    "deep": (b"[" * 100_000, "it is no JSON"),
    "bom": (b"\xef\xbb\xbf{}", "it is no JSON"),
    "latin-1": (b'{"name": "\xff"}', "it is no JSON"),
    "utf-16": ("{}".encode("utf-16"), "it is no JSON"),
    "behind": (manifest_text(make_manifest()).encode() + b"{}", "it is no JSON"),
    "large": (b" " * (module.MAX_BYTES + 1), "expected at most"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "text"), TEXTS.values(), ids=TEXTS)
def test_text_that_is_no_strict_json_is_refused(content, text, tmp_path):
    with pytest.raises(PackageError, match=text):
        read_manifest(write(tmp_path / "p", content))


def test_all_problems_are_listed(tmp_path):
    manifest = make_manifest(n_members="2", opset="x")
    with pytest.raises(PackageError) as caught:
        read_manifest(write(tmp_path / "p", manifest))
    assert len(caught.value.details["problems"]) == 2


def test_a_manifest_that_is_not_a_file_is_refused(tmp_path):
    folder = write(tmp_path / "p", make_manifest())
    (folder / MANIFEST).rename(tmp_path / "elsewhere.json")
    with pytest.raises(PackageError, match=r"it holds no manifest\.json"):
        read_manifest(folder)
    assert not is_package(folder)
    (folder / MANIFEST).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(PackageError, match="got a symbolic link"):
        read_manifest(folder)
    assert not is_package(folder)
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    with pytest.raises(PackageError, match="it is not a regular file"):
        read_manifest(folder)
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()
    with pytest.raises(PackageError, match="it is not a regular file"):
        read_manifest(folder)
    with pytest.raises(PackageError, match="there is no such folder"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(PackageError, match="expected a folder, got a file"):
        read_manifest(tmp_path / "elsewhere.json")


def test_reading_loads_no_torch(tmp_path):
    folder = write(tmp_path / "p", make_manifest())
    code = (
        "import sys; from ensexport.package import manifest, samples; assert manifest.is_package(sys.argv[1]);"
        "assert 'jsonschema' not in sys.modules and 'onnx' not in sys.modules; manifest.read_manifest(sys.argv[1]);"
        "print('torch' in sys.modules, 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]
