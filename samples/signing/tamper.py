"""Change copies of a signed package, and print what model-signing and `ensexport verify` say of each."""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx


def leave_alone(package: Path) -> None:
    """As it was signed."""


def flip_a_bit(package: Path) -> None:
    """The lowest bit of one weight: too little for any answer to change visibly."""
    path = package / "model.onnx"
    data = bytearray(path.read_bytes())
    weight = max((tensor.raw_data for tensor in onnx.load(path).graph.initializer), key=len)
    data[data.index(weight)] ^= 1
    path.write_bytes(data)


def flip_a_bit_and_fix_the_manifest(package: Path) -> None:
    """What someone does who knows the format: the manifest agrees with the file again."""
    flip_a_bit(package)
    manifest = json.loads((package / "manifest.json").read_text())
    for file in manifest["files"]:
        if file["path"] == "model.onnx":
            file["sha256"] = hashlib.sha256((package / "model.onnx").read_bytes()).hexdigest()
    (package / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, indent=1) + "\n")


def add_a_file(package: Path) -> None:
    """Beside what was signed."""
    (package / "run_me.py").write_text("print('hello')\n")


# A change, and the exit codes of model-signing and of `ensexport verify` that it must have.
CHANGES: list[tuple[Callable[[Path], None], int, int]] = [
    (leave_alone, 0, 0),
    (flip_a_bit, 1, 3),
    (flip_a_bit_and_fix_the_manifest, 1, 0),
    (add_a_file, 1, 3),
]


def answer(command: list[str]) -> tuple[int, str]:
    """Exit code, and in one line why."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return 0, done.stdout.splitlines()[-1]
    why = re.split(": expected", done.stderr.splitlines()[0], flags=re.IGNORECASE)[0]
    return done.returncode, re.sub(r"""\[["']|["']\]$|\\""", "", why)  # model-signing shows a list of Python strings


def main(package: Path, signature: Path, key: Path) -> None:
    """Print a verdict of each tool for each change.

    Raises:
        SystemExit: A tool took what it should refuse, or refused what was signed.
    """
    scripts = Path(sys.executable).parent
    wrong = []
    for change, *expected in CHANGES:
        name = change.__name__.replace("_", " ")
        print(name)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / package.name
            shutil.copytree(package, copy)
            change(copy)
            signing = [scripts / "model_signing", "verify", "key", copy, "--signature", signature, "--public_key", key]
            tools = {"model-signing": signing, "ensexport verify": [scripts / "ensexport", "verify", copy]}
            for (tool, command), code in zip(tools.items(), expected, strict=True):
                found, said = answer([str(part) for part in command])
                print(f"  {tool:<16} exit code {found}: {said.replace(f'{folder}/', '')}")
                if found != code:
                    wrong.append(f"{name}: expected exit code {code} of {tool}, got {found}")
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", nargs="?", type=Path, default=Path("pkg"), help="the package folder")
    parser.add_argument("--signature", type=Path, default=Path("pkg.sig"), help="its signature")
    parser.add_argument("--key", type=Path, default=Path("keys/public.pem"), help="the public key")
    arguments = parser.parse_args()
    main(arguments.package, arguments.signature, arguments.key)
