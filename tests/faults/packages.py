"""Small packages to stage: what was written, and what stands there now."""

import json
import os
from pathlib import Path

from ensexport.staging import Staging, writing

FILES = ("model.onnx", "model.ts", "test_data_set_0/input_0.pb")
MANIFEST = json.dumps({"tool": {"name": "ensexport"}})


def fill(folder, text):
    """Write a package: each file holds `text` and its own name, the manifest comes last."""
    for name in FILES:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{text} {name}")
    (folder / "manifest.json").write_text(MANIFEST)


def package(text):
    """What `contents` says of such a package."""
    return {name: f"{text} {name}".encode() for name in FILES} | {"manifest.json": MANIFEST.encode()}


def files(text, names):
    """What `contents` says of files written by `write_files`."""
    return {name: f"{text} {name}".encode() for name in names}


def contents(folder):
    """Every file below `folder`, hidden ones too, with its bytes; where links lead; empty folders."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = b"-> " + os.fsencode(os.readlink(path))
        elif not path.is_dir():
            found[str(path.relative_to(folder))] = path.read_bytes()
        elif not any(path.iterdir()):
            found[f"{path.relative_to(folder)}/"] = b""
    return found


def write_package(target, *, text="new", force=False):
    """Stage a package and put it in place."""
    with Staging([], folders=[target], force=force) as staging:
        with writing(target):
            fill(staging.path(target), text)
        return staging.commit()


def write_files(target, *, text="new", force=False):
    """Stage a file with external data beside it, and put both in place."""
    with Staging([target], force=force) as staging:
        data = staging.path(target).with_name(f"{target.name}.data")
        with writing(target):
            data.write_text(f"{text} {data.name}")
            staging.path(target).write_text(f"{text} {target.name}")
        return staging.commit()


def write_both(folder, *, text="new", force=False):
    """A package and a file in one commit."""
    package_target, file_target = folder / "pkg", folder / "e.onnx"
    with Staging([file_target], folders=[package_target], force=force) as staging:
        with writing(package_target):
            fill(staging.path(package_target), text)
            staging.path(file_target).write_text(f"{text} e.onnx")
        return staging.commit()
