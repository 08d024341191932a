"""Pack one architecture of every timm family and write the table `docs/coverage.md`.

    python -m tests.zoo.run [--only FAMILY,...] [--seconds LIMIT]

Each family runs in a process of its own with a time limit. Results are written as they come.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tests.zoo.families import FAMILIES

_TABLE = Path(__file__).parents[2] / "docs" / "coverage.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="families, comma-separated")
    parser.add_argument("--seconds", type=int, default=900, help="limit for one family")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else list(FAMILIES)
    results: dict[str, dict[str, object]] = {}
    for family in wanted:
        name, shape = FAMILIES[family]
        results[family] = _packed(name, shape, options.seconds)
        print(family, name, json.dumps(results[family]), flush=True)
        _TABLE.write_text(_page(results))


def _packed(name: str, shape: tuple[int, int, int], seconds: int) -> dict[str, object]:
    command = [sys.executable, "-m", "tests.zoo.one", name, *map(str, shape)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"not done after {seconds} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        return {"ok": False, "error": f"exit {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"}
    result: dict[str, object] = json.loads(lines[-1])
    return result


def _page(results: dict[str, dict[str, object]]) -> str:
    packed = sum(bool(result["ok"]) for result in results.values())
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "onnxruntime-gpu", "onnxscript"))
    lines = [
        "# Coverage",
        "",
        "One small architecture a timm family, random weights, two members, dynamic batch, packed to ONNX and",
        "TorchScript, each compared with the loop at batch 1 and 3. Made by `make zoo`.",
        "",
        f"{datetime.date.today().isoformat()}, {versions}: {packed} of {len(results)} families run were packed",
        f"(timm has {len(FAMILIES)}).",
        "",
        "| family | architecture | packed | seconds | worst error | down the ladder |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for family, result in results.items():
        name = FAMILIES[family][0]
        if result["ok"]:
            fallbacks = ", ".join(result["fallbacks"]) or "-"  # type: ignore[arg-type]
            lines.append(f"| {family} | {name} | yes | {result['seconds']} | {result['max_error']:.1e} | {fallbacks} |")
        else:
            lines.append(f"| {family} | {name} | no | | | {str(result['error']).replace('|', '/')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
