"""Pack one architecture of every family and write the table `docs/coverage.md`.

    python -m tests.zoo.run [--only NAME,...] [--resume] [--seconds LIMIT]

Each row runs in a process of its own with a time limit. Results are kept in `.zoo/results.jsonl` as they come, and the
page is written from all that are there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.zoo.rows import ROWS, Row

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / ".zoo" / "results.jsonl"
PAGE = ROOT / "docs" / "coverage.md"
LIBRARIES = {
    "timm": "one small architecture for each module of `timm.models`, at its own input size (three cut to two blocks)",
    "torchvision": "one architecture a family of `torchvision.models`: classification, segmentation, video",
    "transformers": "tiny configurations of transformers with dynamic batch and, for texts and sound, dynamic length",
}
PACKAGES = ("torch", "timm", "torchvision", "transformers", "onnxruntime-gpu", "onnxscript")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="libraries, families or architectures, comma-separated")
    parser.add_argument("--resume", action="store_true", help="leave out what was packed before")
    parser.add_argument("--seconds", type=int, default=900, help="limit for one architecture")
    options = parser.parse_args()
    results = read_results(RESULTS)
    for row in wanted(options.only, results if options.resume else {}):
        result = packed(row, options.seconds)
        results[row.key] = result
        print(row.key, json.dumps(result), flush=True)
        add_result(RESULTS, row.key, result)
        PAGE.write_text(page(results))
    PAGE.write_text(page(results))


def wanted(only: str, done: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Return the rows to run, in the order of the table.

    Args:
        only: Libraries, families or architectures, comma-separated; empty for all rows.
        done: Results of rows that need not be run again if they were packed.

    Raises:
        SystemExit: A name is none of them.
    """
    names = {name.strip() for name in only.split(",") if name.strip()}
    known = {name for row in ROWS.values() for name in _names(row)}
    if names - known:
        sys.exit(f"no library, family or architecture: {', '.join(sorted(names - known))}")
    rows = [row for row in ROWS.values() if not names or names & _names(row)]
    return [row for row in rows if not done.get(row.key, {}).get("ok")]


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Return the last result of each row that there is. A line that was cut short does not count."""
    results: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            result = json.loads(line)
        except ValueError:
            continue
        results[result.pop("key")] = result
    return results


def add_result(path: Path, key: str, result: Mapping[str, Any]) -> None:
    """Append one result."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"key": key, **result}) + "\n")


def packed(row: Row, seconds: int) -> dict[str, Any]:
    """Pack one row in a process of its own."""
    result = _run([sys.executable, "-m", "tests.zoo.one", row.key], seconds)
    return {**result, "date": datetime.date.today().isoformat(), "versions": _versions()}


def _run(command: list[str], seconds: int) -> dict[str, Any]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"not done after {seconds} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return {"ok": False, "error": f"exit {done.returncode}: {last[:300]}"}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page of all results, in the order of the table. Results of rows that are gone are left out."""
    lines = [
        "# Coverage",
        "",
        "Two members of each architecture, with random weights that differ in every parameter and in the running",
        "statistics, were packed with a dynamic batch (texts and sound: a dynamic length too) to one ONNX and one",
        "TorchScript file. Each file was run on random inputs at batch 1 and 3, ONNX with the graph optimisation",
        "of ONNX Runtime off and on; every output of every member was compared with that member alone in PyTorch,",
        "in float64. Packed means that all were within the bound that `ensexport pack` applies. The worst error is",
        "a share of the largest value; the seconds are those of the whole call and depend on the machine.",
        "[batching.md](batching.md) explains the steps down the ladder. Where packing failed, the last column says",
        "why, and whether `torch.export` can export one such member with the same dynamic dimensions. The page is",
        "written by `python -m tests.zoo.run`.",
        "",
        f"{_when(results)}.",
    ]
    for library, what in LIBRARIES.items():
        rows = [row for row in ROWS.values() if row.library == library]
        run = [row for row in rows if row.key in results]
        packed_rows = sum(bool(results[row.key]["ok"]) for row in run)
        not_run = f"; {len(rows) - len(run)} more were not run" if len(run) < len(rows) else ""
        lines += ["", f"## {library}", "", f"{what[0].upper()}{what[1:]}: {packed_rows} of {len(run)} packed{not_run}."]
        if run:
            lines += ["", "| family | architecture | packed | seconds | worst error | down the ladder, or why not |"]
            lines += ["| --- | --- | --- | ---: | ---: | --- |", *(_line(row, results[row.key]) for row in run)]
    return "\n".join(lines) + "\n"


def _line(row: Row, result: Mapping[str, Any]) -> str:
    start = f"| {row.family} | {row.architecture} |"
    if result["ok"]:
        fallbacks = ", ".join(result["fallbacks"]) or "-"
        return f"{start} yes | {result['seconds']} | {result['max_error']:.1e} | {fallbacks} |"
    return f"{start} no | | | {_reason(result).replace('|', '/')} |"


def _reason(result: Mapping[str, Any]) -> str:
    if "torch" not in result:
        return str(result["error"])
    whose = f"torch.export fails too: {result['torch']}" if result["torch"] else "ours: torch.export can"
    return f"{result['error']} ({whose})"


def _when(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Say when and with what; several where a run was resumed after an update."""
    used: dict[str, set[str]] = {}
    for result in results.values():
        used.setdefault(str(result["versions"]), set()).add(str(result["date"]))
    return ". ".join(f"{_span(dates)}, with {versions}" for versions, dates in used.items()) or "Nothing was run yet"


def _span(dates: Iterable[str]) -> str:
    first, last = min(dates), max(dates)
    return first if first == last else f"{first} to {last}"


def _names(row: Row) -> set[str]:
    return {row.library, row.family, row.architecture, row.key}


def _versions() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


if __name__ == "__main__":
    main()
