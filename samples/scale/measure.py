"""Pack ensembles of growing size with the real command line, take time and memory from outside, write the page.

    python measure.py                               # everything: about 40 GB of disk
    python measure.py --only 'vit-*,larger'         # some rows; the others stay as they are on the page
    python measure.py --resume                      # what an interrupted run has left
    python measure.py --quick -o .                  # the same rows with a tiny network: does all of it run?

This process stays small, since Linux would count what it holds as its children's, see `child.py`: so the checkpoints,
the export of one member and the versions come from children too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from child import run_checked
from networks import HERE, NETWORKS
from one_row import Setting, measure_rows
from plan import NAMES, Row, by_network, select
from records import find, read_records, replaced, write_records

DOCS = HERE.parents[1] / "docs"
WORK = HERE / "work"
ASKING_S = 600.0


def main() -> None:
    """Measure what the command line asks for; the exit code is 1 if a row failed."""
    options = parse()
    # As Ctrl-C does: the child is killed and the scratch folder removed on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    output: Path = options.output / "scale.json"
    known = read_records(output)
    rows = [row for row in select(options.only.split(",")) if not (options.resume and find(known, row.name))]
    failed = measure(rows, options, output) if rows else False
    from report import write_page  # loads matplotlib, which may not weigh on what is measured

    say(f"written: {write_page(options.output).name}")
    raise SystemExit(1 if failed else 0)


def measure(rows: Sequence[Row], options: argparse.Namespace, output: Path) -> bool:
    """Measure rows and keep each as soon as it is there.

    Returns:
        True if one failed.
    """
    records = read_records(output)
    failed = False
    common = {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "command": command_of(options),
        "is_quick": options.quick,
        "environment": environment(),
    }
    may_choose = knows_validate_members()
    is_new = not options.folder.exists()
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, own in by_network(rows):
            network = NETWORKS["tiny" if options.quick else name]
            with tempfile.TemporaryDirectory(prefix="scale-", dir=options.folder) as folder:
                for record in measure_rows(network, own, Setting(Path(folder), options.limit_s, may_choose, say)):
                    records = replaced(records, record | common)
                    write_records(output, records)
                    failed = failed or "error" in record
    finally:
        if is_new:
            options.folder.rmdir()
    return failed


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure packing at size and write docs/scale.md.")
    parser.add_argument("--only", default="*", help=f"some of {','.join(NAMES)}; a star stands for any text")
    parser.add_argument("--resume", action="store_true", help="skip what the output holds already")
    parser.add_argument("--quick", action="store_true", help="a tiny network in place of each")
    parser.add_argument("--limit-s", type=float, default=3600.0, help="kill a child after so many seconds")
    parser.add_argument("--folder", type=Path, default=WORK, help="on the disk to measure; nothing is left in it")
    parser.add_argument("-o", "--output", type=Path, default=DOCS, help="folder of the page and its JSON")
    options = parser.parse_args()
    unknown = [pattern for pattern in options.only.split(",") if not select([pattern])]
    if unknown:
        parser.error(f"unknown --only {', '.join(unknown)}: expected some of {', '.join(NAMES)}")
    return options


def command_of(options: argparse.Namespace) -> str:
    """The command as the page shows it; which folders it used is this machine's own business."""
    parts = ["python", "samples/scale/measure.py"]
    parts += ["--only", options.only] if options.only != "*" else []
    parts += [f"--{name}" for name in ("resume", "quick") if getattr(options, name)]
    return shlex.join(parts)


def environment() -> dict[str, Any]:
    """Versions and machine."""
    account = run_checked([sys.executable, "environment.py"], HERE, ASKING_S, "environment.py")
    facts: dict[str, Any] = json.loads(account.stdout)
    return facts


def knows_validate_members() -> bool:
    """True if `pack --help` lists the option."""
    command = [sys.executable, "-m", "ensexport", "pack", "--help"]
    return "--validate-members" in run_checked(command, HERE, ASKING_S, "ensexport pack --help").stdout


def say(text: str) -> None:
    """Tell on stderr how far it is."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
