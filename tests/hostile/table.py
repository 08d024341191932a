"""Print what every hostile file did, by row: `python -m tests.hostile.table`."""

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from tests.hostile.attempt import attempt
from tests.hostile.everything import all_cases


def results():
    """Yield every case and what loading it did."""
    for case in all_cases():
        with tempfile.TemporaryDirectory() as folder:
            yield case, attempt(case, Path(folder))


def table(pairs):
    """A Markdown table by row, and what was wrong, one line each."""
    counts = defaultdict(lambda: [0, 0, 0, 0, 0.0, 0.0])
    faults = []
    for case, result in pairs:
        row = counts[case.row]
        wrong = result.faults(case)
        row[0] += 1
        row[1] += not any(text.startswith("expected") for text in wrong)
        row[2] += bool(result.left)
        row[3] += result.is_canary_there
        row[4] = max(row[4], result.seconds)
        row[5] = max(row[5], (result.growth_bytes or 0) / 2**20)
        faults += [f"{case.id}: {text}" for text in wrong]
    total = [sum(row[place] for row in counts.values()) for place in range(4)]
    total += [max(row[place] for row in counts.values()) for place in (4, 5)]
    lines = [
        "| files | tried | right code and exit | left a file behind | payloads run | longest, s | most memory, MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in (*counts.items(), ("**all**", total)):
        lines.append(f"| {name} | {row[0]} | {row[1]} | {row[2]} | {row[3]} | {row[4]:.2f} | {row[5]:.0f} |")
    return lines, faults


if __name__ == "__main__":
    printed, wrong = table(results())
    print("\n".join(printed))
    print("\n".join(wrong), file=sys.stderr)
    sys.exit(bool(wrong))
