"""Ways to spoil a package: each changes a copy of one that is right, and says what `verify` must name.

Those under RESEALED also rewrite the manifest's sizes and digests, so that only what the files hold gives them away.
"""

from __future__ import annotations

import os
import socket
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from ensexport.package.manifest import MANIFEST
from ensexport.package.samples import tensor_bytes
from tests.package.builder import edit, edit_model, read, reseal, write_manifest

SAMPLE = "test_data_set_0"


@dataclass(frozen=True)
class Case:
    """One way to spoil a package.

    Attributes:
        spoil: Changes the folder.
        names: The file that the message must name.
        text: What the message must say, a regular expression.
        base: `folder`, `external` or `triton`: which package.
    """

    spoil: Callable[[Path], object]
    names: str
    text: str
    base: str = "folder"


def flip(folder: Path, path: str) -> None:
    content = bytearray((folder / path).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / path).write_bytes(content)


def write(folder: Path, path: str, content: bytes, *, sealed: bool = False) -> None:
    (folder / path).write_bytes(content)
    if sealed:
        reseal(folder)


def to_link(folder: Path, path: str, target: Path | str) -> None:
    (folder / path).rename(folder.parent / f"{folder.name}-elsewhere")
    (folder / path).symlink_to(target if target != "" else folder.parent / f"{folder.name}-elsewhere")


def hard_link(folder: Path, path: str) -> None:
    os.link(folder / path, folder.parent / f"{folder.name}-other-name")


def fifo_for(folder: Path, path: str) -> None:
    (folder / path).unlink(missing_ok=True)
    os.mkfifo(folder / path)


def socket_at(folder: Path, path: str) -> None:
    here = Path.cwd()
    os.chdir(folder)  # a socket's path is at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path)
    finally:
        os.chdir(here)


def swap_files(folder: Path, one: str, other: str) -> None:
    (folder / one).rename(folder / "held")
    (folder / other).rename(folder / one)
    (folder / "held").rename(folder / other)


def entry_of(manifest: dict, path: str) -> dict:
    return next(entry for entry in manifest["files"] if entry["path"] == path)


def set_entry(listed: str, /, **values: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda manifest: entry_of(manifest, listed).update(values))


def rename_entry(path: str) -> Callable[[Path], None]:
    """Have the manifest list the card under another path."""
    return set_entry("README.md", path=path)


def set_key(key: str, value: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda manifest: manifest.update({key: value}))


def change(*way: object, to: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        manifest = read(folder)
        target = manifest
        for step in way[:-1]:
            target = target[step]
        target[way[-1]] = to
        write_manifest(folder, manifest)

    return spoil


def add_file(folder: Path, path: str) -> None:
    (folder / path).parent.mkdir(exist_ok=True, parents=True)
    (folder / path).write_text("x")


def add_listed(folder: Path, path: str, kind: str = "labels") -> None:
    add_file(folder, path)
    edit(folder, lambda m: m["files"].append({"path": path, "format": kind, "size_bytes": 1, "sha256": ""}))
    reseal(folder)


def rename_folder(folder: Path) -> None:
    (folder / SAMPLE).rename(folder / "test_data_set_9")


def file_for_folder(folder: Path) -> None:
    rename_folder(folder)
    (folder / SAMPLE).write_text("x")
    for path in (folder / "test_data_set_9").iterdir():
        path.unlink()
    (folder / "test_data_set_9").rmdir()


def folder_for_file(folder: Path) -> None:
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()


def link_folder(folder: Path) -> None:
    elsewhere = folder.parent / f"{folder.name}-elsewhere"
    (folder / SAMPLE).rename(elsewhere)
    (folder / SAMPLE).symlink_to(elsewhere)


def recase(folder: Path) -> None:
    (folder / "README.md").rename(folder / "readme.md")


def other_form(folder: Path) -> None:
    """The manifest lists a name as one code point, the folder holds it as two."""
    add_listed(folder, "caf\u00e9.txt")
    (folder / "caf\u00e9.txt").rename(folder / unicodedata.normalize("NFD", "caf\u00e9.txt"))


def manifest_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / MANIFEST).write_bytes(change((folder / MANIFEST).read_bytes()))


def big_folder(folder: Path) -> None:
    deep = folder
    for _ in range(40):
        deep = deep / "d"
        deep.mkdir()


KINDS = ("README.md", "model.onnx", "model.ts", "model.pt2", "state.safetensors", f"{SAMPLE}/input_0.pb",
         f"{SAMPLE}/output_0.pb")  # fmt: skip
TRITON_KINDS = ("config.pbtxt", "labels.txt", "warmup/x", "1/model.onnx", "1/model.pt")
FLIPPED = {f"flip-{path}": Case(lambda f, p=path: flip(f, p), path, "expected sha256 .*, got ") for path in KINDS}
FLIPPED |= {
    f"flip-triton-{path}": Case(lambda f, p=path: flip(f, p), path, "expected sha256 .*, got ", "triton")
    for path in TRITON_KINDS
}
FLIPPED["flip-model.onnx.data"] = Case(lambda f: flip(f, "model.onnx.data"), "model.onnx.data", "sha256", "external")

STRUCTURE = {
    "cut": Case(lambda f: os.truncate(f / "model.onnx", 100), "model.onnx", r"expected \d+ bytes, got 100"),
    "empty": Case(lambda f: os.truncate(f / "model.ts", 0), "model.ts", r"expected \d+ bytes, got 0"),
    "longer": Case(lambda f: write(f, "model.onnx", (f / "model.onnx").read_bytes() + b"\0"), "model.onnx",
                   "bytes, got"),
    "data-cut": Case(lambda f: os.truncate(f / "model.onnx.data", 8), "model.onnx.data", "bytes, got 8", "external"),
    "data-longer": Case(lambda f: write(f, "model.onnx.data", (f / "model.onnx.data").read_bytes() + b"\0" * 8),
                        "model.onnx.data", "bytes, got", "external"),
    "data-missing": Case(lambda f: (f / "model.onnx.data").unlink(), "model.onnx.data", "missing", "external"),
    "swapped": Case(lambda f: swap_files(f, f"{SAMPLE}/output_0.pb", "test_data_set_1/output_0.pb"),
                    f"{SAMPLE}/output_0.pb", "bytes, got"),
    "extra": Case(lambda f: add_file(f, "notes.txt"), "notes.txt", "a file is there, and the manifest lists none"),
    "extra-hidden": Case(lambda f: add_file(f, ".DS_Store"), ".DS_Store", "lists none"),
    "extra-in-folder": Case(lambda f: add_file(f, f"{SAMPLE}/input_1.pb"), f"{SAMPLE}/input_1.pb", "lists none"),
    "extra-in-new-folder": Case(lambda f: add_file(f, "a/b/run.py"), "a/b/run.py", "lists none"),
    "extra-manifest": Case(lambda f: add_file(f, f"a/{MANIFEST}"), f"a/{MANIFEST}", "lists none"),
    "extra-data": Case(lambda f: add_file(f, "model.onnx.data"), "model.onnx.data", "lists none"),
    "extra-folder": Case(lambda f: (f / "later").mkdir(), "later", "an empty folder is there"),
    "extra-name-no-utf8": Case(lambda f: add_file(f, os.fsdecode(b"x\xff.txt")), "x\\udcff.txt", "lists none"),
    "missing": Case(lambda f: (f / "model.ts").unlink(), "model.ts", "it is missing"),
    "renamed": Case(lambda f: (f / "model.ts").rename(f / "net.ts"), "model.ts", "missing: its bytes are in 'net.ts'"),
    "renamed-folder": Case(rename_folder, f"{SAMPLE}/input_0.pb",
                           "missing: its bytes are in 'test_data_set_9/input_0.pb'"),
    "symlink": Case(lambda f: to_link(f, "model.onnx", ""), "model.onnx", "expected a file, got a symbolic link to"),
    "symlink-inside": Case(lambda f: to_link(f, f"{SAMPLE}/input_0.pb", "../test_data_set_1/input_0.pb"),
                           f"{SAMPLE}/input_0.pb", "symbolic link to '../test_data_set_1/input_0.pb'"),
    "symlink-dangling": Case(lambda f: (f / "x").symlink_to("nowhere"), "x", "expected nothing, got a symbolic link"),
    "symlink-loop": Case(lambda f: (f / "loop").symlink_to("."), "loop", "got a symbolic link to '.'"),
    "symlink-folder": Case(link_folder, SAMPLE, "expected a folder, got a symbolic link"),
    "symlink-data": Case(lambda f: to_link(f, "model.onnx.data", ""), "model.onnx.data", "symbolic link", "external"),
    "hard-link": Case(lambda f: hard_link(f, "model.onnx"), "model.onnx", r"got a hard link \(2 names\)"),
    "hard-link-data": Case(lambda f: hard_link(f, "model.onnx.data"), "model.onnx.data", "hard link", "external"),
    "hard-link-inside": Case(lambda f: os.link(f / "README.md", f / "again.md"), "README.md", "hard link"),
    "hard-link-manifest": Case(lambda f: hard_link(f, MANIFEST), MANIFEST, "hard link"),
    "pipe": Case(lambda f: fifo_for(f, "model.onnx"), "model.onnx", "expected a file, got a pipe"),
    "pipe-extra": Case(lambda f: fifo_for(f, "p"), "p", "a pipe is there, and the manifest lists none"),
    "socket": Case(lambda f: socket_at(f, "s"), "s", "a socket is there"),
    "folder-named-as-file": Case(folder_for_file, "README.md", "expected a file, got a folder"),
    "file-named-as-folder": Case(file_for_folder, SAMPLE, "expected a folder, got a file"),
    "other-case": Case(recase, "readme.md", "differs from 'README.md' by case or Unicode form alone"),
    "case-twin": Case(lambda f: add_file(f, "MODEL.onnx"), "MODEL.onnx|model.onnx", "by case or Unicode form alone"),
    "case-twin-folder": Case(lambda f: add_file(f, "Test_data_set_0/x"), "test_data_set_0", "by case or Unicode form"),
    "unicode-form": Case(other_form, "cafe\u0301.txt", "differs from .* by case or Unicode form alone"),
    "deep": Case(big_folder, "", "expected folders at most 32 deep"),
}  # fmt: skip

IN_MANIFEST = {
    "manifest-missing": Case(lambda f: (f / MANIFEST).unlink(), "", r"holds no manifest\.json"),
    "manifest-symlink": Case(lambda f: to_link(f, MANIFEST, ""), MANIFEST, "got a symbolic link"),
    "manifest-folder": Case(lambda f: ((f / MANIFEST).unlink(), (f / MANIFEST).mkdir()), MANIFEST,
                            "not a regular file"),
    "manifest-pipe": Case(lambda f: fifo_for(f, MANIFEST), MANIFEST, "not a regular file"),
    "manifest-of-the-future": Case(set_key("schema_version", 2), MANIFEST, "schema version 2: expected 1"),
    "manifest-cut": Case(manifest_bytes(lambda b: b[:-9]), MANIFEST, "no JSON"),
    "manifest-empty": Case(manifest_bytes(lambda b: b""), MANIFEST, "no JSON"),
    "manifest-flipped": Case(manifest_bytes(lambda b: b.replace(b'"files"', b'"filez"')), MANIFEST,
                             "'filez' was unexp"),
    "manifest-key-twice": Case(manifest_bytes(lambda b: b.replace(b'"opset":', b'"opset": 1, "opset":')), MANIFEST,
                               "twice"),
    "manifest-other-key": Case(set_key("comment", "x"), MANIFEST, "'comment' was unexpected"),
    "path-parent": Case(rename_entry("../README.md"), MANIFEST, r"files\[0\].path: '../README.md'"),
    "path-parent-inside": Case(rename_entry("a/../README.md"), MANIFEST, "a/../README.md"),
    "path-absolute": Case(rename_entry("/etc/passwd"), MANIFEST, "/etc/passwd"),
    "path-backslash": Case(rename_entry("..\\README.md"), MANIFEST, "README.md"),
    "path-drive": Case(rename_entry("C:README.md"), MANIFEST, "C:README.md"),
    "path-nul": Case(rename_entry("README.md\0"), MANIFEST, r"README.md\\x00"),
    "path-line-end": Case(rename_entry("README.md\n"), MANIFEST, r"README.md\\n"),
    "path-of-the-manifest": Case(rename_entry(MANIFEST), MANIFEST, "lists itself|lists"),
    "path-twice": Case(lambda f: edit(f, lambda m: m["files"].insert(0, m["files"][0])), "README.md",
                       "is listed twice"),
    "not-sorted": Case(lambda f: edit(f, lambda m: m["files"].reverse()), MANIFEST, "expected an order by path"),
    "unicode-form-listed": Case(lambda f: add_listed(f, "cafe\u0301.txt"), "cafe\u0301.txt", "normal form C"),
    "case-twins-listed": Case(lambda f: (add_listed(f, "A.txt"), add_listed(f, "a.txt")), "a.txt",
                              "by case or Unicode"),
    "other-size": Case(set_entry("model.onnx", size_bytes=1), "model.onnx", "expected 1 bytes, got"),
    "other-digest": Case(set_entry("model.onnx", sha256="0" * 64), "model.onnx", "expected sha256 0000"),
    "not-listed": Case(lambda f: edit(f, lambda m: m["files"].pop(0)), "README.md", "the manifest lists none"),
    "sample-not-named": Case(lambda f: edit(f, lambda m: m["samples"].pop(0)), f"{SAMPLE}/input_0.pb",
                             "no sample names"),
    "member-digest": Case(change("members", 1, "weights_sha256", to="1" * 64), "model.onnx",
                          "member 1: expected weights_"),
    "member-name": Case(change("members", 0, "name", to="best.pt"), "model.onnx", "member 0: expected name best.pt"),
    "members-swapped": Case(lambda f: edit(f, lambda m: m["members"].reverse() or [
        entry.update(index=k) for k, entry in enumerate(m["members"])]), "model.onnx", "member 0: expected name m2.pt"),
    "member-axis": Case(set_key("member_axis", 1), "model.onnx", "expected member_axis 1 in its metadata, got 0"),
    "dims": Case(set_key("dims", {"batch": [1, 8]}), "model.onnx", "expected dims"),
    "opset": Case(set_key("opset", 17), "model.onnx", "expected opset 17, got"),
    "input-name": Case(lambda f: edit(f, lambda m: (m["inputs"][0].update(name="z"), [
        s["inputs"][0].update(name="z") for s in m["samples"]])), "model.onnx", "expected the inputs z, got x"),
    "input-dtype": Case(change("inputs", 0, "dtype", to="float64"), "model.onnx",
                        "expected dtype float64, got float32"),
    "input-shape": Case(change("inputs", 0, "shape", to=["batch", 5]), "model.onnx",
                        r"expected shape \[batch, 5\], got"),
    "input-rank": Case(change("inputs", 0, "shape", to=["batch"]), "model.onnx", r"expected shape \[batch\], got"),
    "input-dim-fixed": Case(change("inputs", 0, "shape", to=[2, 4]), "model.onnx", r"expected shape \[2, 4\], got"),
    "input-optional": Case(change("inputs", 0, "is_optional", to=True), "model.onnx", "expected a default, got none"),
    "output-shape": Case(change("outputs", 0, "shape", to=[2, "batch", 3]), "model.onnx",
                         r"expected shape \[2, batch, 3\]"),
    "emit": Case(change("emit", 0, "names", to=["mean"]), "model.onnx", "expected emit"),
    "ts-metadata": Case(change("members", 1, "sha256", to="1" * 64), "model.ts", "member 1: expected sha256 111"),
}  # fmt: skip


def tensor(model: onnx.ModelProto) -> TensorProto:
    return next(each for each in model.graph.initializer if each.name == "last.weight")


def set_external(each: TensorProto, **entries: object) -> None:
    found = {entry.key: entry.value for entry in each.external_data} | {k: str(v) for k, v in entries.items()}
    del each.external_data[:]
    for key, value in found.items():
        if value != "None":
            each.external_data.add(key=key, value=value)
    each.data_location = TensorProto.EXTERNAL
    each.ClearField("raw_data")


def external(**entries: object) -> Callable[[Path], None]:
    return lambda folder: edit_model(folder, lambda model: set_external(tensor(model), **entries))


def sneaked(place: Callable[[onnx.ModelProto, TensorProto], object]) -> Callable[[Path], None]:
    """Put a tensor that reads another file where few look for one."""

    def change(model: onnx.ModelProto) -> None:
        secret = TensorProto(name="secret", data_type=TensorProto.FLOAT, dims=[2])
        set_external(secret, location="../secret", offset=0, length=8)
        place(model, secret)

    return lambda folder: edit_model(folder, change)


def in_subgraph(model: onnx.ModelProto, secret: TensorProto) -> None:
    body = helper.make_graph([], "body", [], [], initializer=[secret])
    model.graph.node.add(op_type="If", input=["c"], output=["d"]).attribute.append(
        helper.make_attribute("then_branch", body)
    )


def in_function(model: onnx.ModelProto, secret: TensorProto) -> None:
    node = helper.make_node("Constant", [], ["k"], value=secret)
    model.functions.append(helper.make_function("own", "F", [], ["k"], [node], [helper.make_opsetid("", 20)]))


def in_sparse(model: onnx.ModelProto, secret: TensorProto) -> None:
    model.graph.sparse_initializer.add(values=secret, dims=[2])


def overlap(model: onnx.ModelProto) -> None:
    """Two tensors on the same bytes."""
    first, other = (each for each in model.graph.initializer if each.name in ("last.weight", "first.weight"))
    offset = {entry.key: entry.value for entry in first.external_data}["offset"]
    set_external(other, offset=offset)


def again(model: onnx.ModelProto) -> None:
    tensor(model).external_data.add(key="offset", value="0")


def no_utf8(model: onnx.ModelProto) -> None:
    """Protobuf hands out strings that are no UTF-8 as bytes."""
    each = tensor(model)
    each.external_data[0].key = "location?"
    each.ParseFromString(each.SerializeToString().replace(b"location?", b"location\xff"))


def both(model: onnx.ModelProto) -> None:
    tensor(model).raw_data = bytes(288)


def undeclared(model: onnx.ModelProto) -> None:
    tensor(model).data_location = TensorProto.DEFAULT


def cut_sealed(folder: Path) -> None:
    os.truncate(folder / "model.onnx.data", 200)
    reseal(folder)


def unused_data(folder: Path) -> None:
    add_listed(folder, "model.onnx.data", "onnx_data")


def sample(name: str, array: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: write(folder, f"{SAMPLE}/input_0.pb", tensor_bytes(name, array), sealed=True)


def no_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def other_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "y"


RIGHT = np.zeros((2, 4), np.float32)
OUTSIDE = "expected values in 'model.onnx.data', got the location"
RESEALED = {
    "external-parent": Case(external(location="../secret"), "model.onnx", f"{OUTSIDE} '../secret'", "external"),
    "external-absolute": Case(external(location="/etc/passwd"), "model.onnx", f"{OUTSIDE} '/etc/passwd'", "external"),
    "external-other-file": Case(external(location="README.md"), "model.onnx", f"{OUTSIDE} 'README.md'", "external"),
    "external-dot": Case(external(location="./model.onnx.data"), "model.onnx", OUTSIDE, "external"),
    "external-memory": Case(external(location="*/_ORT_MEM_ADDR_/*"), "model.onnx", OUTSIDE, "external"),
    "external-none": Case(external(location=None), "model.onnx", f"{OUTSIDE} None", "external"),
    "external-beyond": Case(external(offset=10**6), "model.onnx", "expected bytes within the", "external"),
    "external-long": Case(external(length=2**40), "model.onnx", "expected 288 bytes for shape", "external"),
    "external-short": Case(external(length=4), "model.onnx", "expected 288 bytes .* got the length 4", "external"),
    "external-no-length": Case(external(length=None), "model.onnx", "a number as its length, got None", "external"),
    "external-negative": Case(external(offset=-8), "model.onnx", "a number as its offset, got '-8'", "external"),
    "external-hex": Case(external(offset="0x10"), "model.onnx", "a number as its offset, got '0x10'", "external"),
    "external-other-key": Case(external(basepath="/"), "model.onnx", "expected each of the keys", "external"),
    "external-key-twice": Case(lambda f: edit_model(f, again), "model.onnx", "at most once", "external"),
    "external-no-utf8": Case(lambda f: edit_model(f, no_utf8), "model.onnx", "expected each of the keys", "external"),
    "external-overlap": Case(lambda f: edit_model(f, overlap), "model.onnx", "overlap in bytes", "external"),
    "external-and-inside": Case(lambda f: edit_model(f, both), "model.onnx", "values in the file and", "external"),
    "external-undeclared": Case(lambda f: edit_model(f, undeclared), "model.onnx", "does not say that", "external"),
    "external-data-cut": Case(cut_sealed, "model.onnx", "expected bytes within the 200 of", "external"),
    "external-unlisted": Case(external(location="README.md", offset=0, length=288), "model.onnx",
                              "expected no external data, for the manifest lists none, got the location 'README.md'"),
    "external-in-subgraph": Case(sneaked(in_subgraph), "model.onnx", "tensor 'secret': expected no external data"),
    "external-in-function": Case(sneaked(in_function), "model.onnx", "tensor 'secret': expected no external data"),
    "external-in-sparse": Case(sneaked(in_sparse), "model.onnx", "tensor 'secret': expected no external data"),
    "external-in-triton": Case(lambda f: edit_model(f, lambda m: set_external(tensor(m), location="../config.pbtxt"),
                                                    "1/model.onnx"), "1/model.onnx", "no external data", "triton"),
    "external-unused": Case(unused_data, "model.onnx", "no tensor has its values in 'model.onnx.data'"),
    "model-noise": Case(lambda f: write(f, "model.onnx", b"\xff" * 99, sealed=True), "model.onnx",
                        "an ONNX model, got"),
    "model-empty": Case(lambda f: write(f, "model.onnx", b"", sealed=True), "model.onnx", "expected opset"),
    "model-no-metadata": Case(lambda f: edit_model(f, no_metadata), "model.onnx",
                              "expected ensexport's metadata, got none"),
    "model-other-output": Case(lambda f: edit_model(f, other_output), "model.onnx",
                               "expected the outputs output, got y"),
    "ts-noise": Case(lambda f: write(f, "model.ts", b"no zip", sealed=True), "model.ts",
                     "expected an archive of torch's"),
    "pt2-noise": Case(lambda f: write(f, "model.pt2", b"no zip", sealed=True), "model.pt2",
                      "expected an archive of torch's"),
    "sample-noise": Case(lambda f: write(f, f"{SAMPLE}/input_0.pb", b"\xff" * 9, sealed=True), f"{SAMPLE}/input_0.pb",
                         "no TensorProto"),
    "sample-name": Case(sample("z", RIGHT), f"{SAMPLE}/input_0.pb", "expected the tensor 'x', got 'z'"),
    "sample-dtype": Case(sample("x", RIGHT.astype(np.float64)), f"{SAMPLE}/input_0.pb",
                         "expected dtype float32, got float6"),
    "sample-shape": Case(sample("x", RIGHT[:, :3]), f"{SAMPLE}/input_0.pb", r"expected shape .*, got \[2, 3\]"),
    "sample-rank": Case(sample("x", RIGHT[0]), f"{SAMPLE}/input_0.pb", r"expected shape .*, got \[4\]"),
}  # fmt: skip

CASES = FLIPPED | STRUCTURE | IN_MANIFEST | RESEALED
