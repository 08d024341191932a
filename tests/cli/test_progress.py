"""A bar on a terminal, lines with `-v`, nothing otherwise; stages that move weights count bytes."""

import os
import re
import subprocess
import sys

import pytest

from ensexport.cli.progress import progress

GB = 10**9
STAGES = """
import time
from ensexport.cli.progress import progress
with progress(verbose={verbose}, quiet={quiet}) as show:
    show("load", 0, 0)
    for done in range(8):
        show("load", done * 500_000_000, 3_500_000_000)
        time.sleep(0.15)
    for done in range(8):
        show("loop", done, 7)
        time.sleep(0.15)
    show("validate", 0, 0)
    time.sleep(0.3)
"""


def listed(capsys, *told, quiet=False):
    with progress(verbose=True, quiet=quiet) as show:
        for stage, done, total in told:
            show(stage, done, total)
    out, err = capsys.readouterr()
    assert out == ""
    return [re.sub(r"^ *[\d.]+ s  ", "", line) for line in err.splitlines()]


def on_a_terminal(script, **environment):
    """What a process shows on a terminal of its own, escape sequences taken out."""
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", **environment},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not block:
            break
        shown += block
    os.close(ours)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())


def test_a_stage_that_moves_bytes_says_at_its_end_how_many_and_how_fast(capsys):
    lines = listed(capsys, ("load", 0, 0), ("load", GB, 3 * GB), ("load", 3 * GB, 3 * GB), ("capture", 0, 0))
    assert lines[0] == "reading checkpoints"
    assert re.fullmatch(r"reading checkpoints: 3\.0 GB in [\d.]+ s, [\d.]+ GB/s", lines[1])
    assert lines[2:] == ["exporting one member"]


@pytest.mark.parametrize(
    ("stage", "words"),
    [("load", "reading checkpoints"), ("weights", "writing the weights"), ("digest", "computing checksums")],
)
def test_the_last_stage_says_it_too(stage, words, capsys):
    first, last = listed(capsys, (stage, 0, 0), (stage, 1_500_000, 1_500_000))
    assert first == words
    assert last.startswith(f"{words}: 1.5 MB in ")


def test_other_stages_and_those_that_moved_nothing_are_one_line(capsys):
    told = [("weights", 0, 0), ("loop", 1, 3), ("loop", 3, 3), ("validate", 0, 0), ("load", 0, 9)]
    assert listed(capsys, *told) == [
        "writing the weights",
        "running the members one by one",
        "comparing with the loop",
        "reading checkpoints",
    ]


def test_a_stage_that_comes_again_counts_anew(capsys):
    lines = listed(capsys, ("weights", 5000, 5000), ("digest", 700, 700), ("weights", 2000, 2000))
    assert [line.partition(" in ")[0] for line in lines] == [
        "writing the weights",
        "writing the weights: 5.0 kB",
        "computing checksums",
        "computing checksums: 700 B",
        "writing the weights",
        "writing the weights: 2.0 kB",
    ]


def test_quiet_wins_and_without_a_terminal_nothing_is_said(capsys):
    assert listed(capsys, ("load", 1, 2), quiet=True) == []
    with progress(verbose=False, quiet=False) as show:
        show("load", 1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_terminal_shows_bytes_the_rate_and_the_time_left():
    shown = on_a_terminal(STAGES.format(verbose=False, quiet=False))
    assert re.search(r"reading checkpoints .* 2\.0 GB of 3\.5 GB, \d+\.\d [MG]B/s, 0:00:\d\d left", shown)
    assert re.search(r"reading checkpoints .* 3\.5 GB of 3\.5 GB, \d+\.\d [MG]B/s *[\r\n]", shown)
    assert re.search(r"running the members one by one .* 4 of 7, 0:00:\d\d left", shown)
    assert re.search(r"comparing with the loop *[\r\n]", shown)


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_terminal_that_asks_for_quiet_or_lines_has_no_bar():
    assert on_a_terminal(STAGES.format(verbose=False, quiet=True)) == ""
    assert "left" not in on_a_terminal(STAGES.format(verbose=True, quiet=False))
