"""How many points were tried and what came of them: the table of docs/reliability.md.

`python -m tests.faults.counting` runs the tests of this folder and prints it. `ENSEXPORT_FAULTS=10` tries ten times as
many random moments and pairs.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "ENSEXPORT_FAULTS_COUNTS"
NUMBERS = ("points", "hit", "corrupt", "leftovers")


def times(number):
    """A number of random trials, multiplied by what the environment says."""
    return max(1, int(number * float(os.environ.get("ENSEXPORT_FAULTS", "1"))))


@dataclass
class Count:
    """One row.

    Attributes:
        what: What was done.
        fault: What came in between.
        points: How many faults were tried.
        hit: How many of them came before the work was done.
        corrupt: How often what stood at the target was neither the old nor the new, whole.
        leftovers: How often something was left that should not be.
    """

    what: str
    fault: str
    points: int = 0
    hit: int = 0
    corrupt: int = 0
    leftovers: int = 0

    def add(self, *, is_hit, is_whole, is_clean):
        """Count one point."""
        self.points += 1
        self.hit += bool(is_hit)
        self.corrupt += not is_whole
        self.leftovers += not is_clean

    def check(self, at_least=1):
        """Write the row down and assert that nothing was corrupt or left."""
        if path := os.environ.get(FILE):
            with open(path, "a") as file:
                file.write(json.dumps(asdict(self)) + "\n")
        assert (self.corrupt, self.leftovers) == (0, 0), self
        assert self.hit >= at_least, self


def table(rows):
    """The rows as Markdown."""
    rows = _summed(rows)
    lines = [
        "| what | fault | points | before its end | corrupt | leftovers |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    total = {"what": "all", "fault": ""} | {name: sum(row[name] for row in rows) for name in NUMBERS}
    for row in [*sorted(rows, key=lambda row: (row["what"], row["fault"])), total]:
        lines.append("| " + " | ".join([row["what"], row["fault"], *(f"{row[name]:,}" for name in NUMBERS)]) + " |")
    return "\n".join(lines)


def _summed(rows):
    """One row for each kind, also where several tests tried it."""
    summed = {}
    for row in rows:
        whole = summed.setdefault((row["what"], row["fault"]), row | dict.fromkeys(NUMBERS, 0))
        for name in NUMBERS:
            whole[name] += row[name]
    return list(summed.values())


def main():
    """Run the tests and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts"
        path.touch()
        command = [sys.executable, "-m", "pytest", "-q", "-m", "faults", "tests/faults", *sys.argv[1:]]
        done = subprocess.run(command, env=os.environ | {FILE: str(path)}, stdout=sys.stderr, check=False)
        print(table([json.loads(line) for line in path.read_text().splitlines()]))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
