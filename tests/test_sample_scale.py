"""Packing at size: children are measured right, goals are judged right, the page shows what was measured."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import single_threaded_processes  # noqa: F401 - fixture

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "samples" / "scale"
sys.path.insert(0, str(FOLDER))
child, disk, networks, picture, plan, records, report, verdicts, write_checkpoints = map(
    importlib.import_module,
    ("child", "disk", "networks", "picture", "plan", "records", "report", "verdicts", "write_checkpoints"),
)
sys.path.remove(str(FOLDER))

MEMBER, LARGEST = 346_000_000, 9_000_000
GOALS = {goal.key: goal for goal in verdicts.goals()}
ENVIRONMENT = {
    "processor": "a processor", "threads": 2, "memory_mb": 25_000, "python": "3.11", "torch": "2", "onnx": "1",
    "onnxruntime": "1", "ensexport": "0",
}  # fmt: skip


def record(name, **more):
    """A row as `measure.py` writes it: ViT-B, 10 s and 1 s a member, 1 GB."""
    row = next(row for row in plan.ROWS if row.name == name)
    n = row.n_members
    found = {
        "name": name, "network": networks.NETWORKS[row.network].title, "n_members": n, "n_files": row.n_files,
        "member_bytes": MEMBER, "largest_tensor_bytes": LARGEST, "validate": row.validate,
        "checkpoint_bytes": n * MEMBER, "packed_bytes": n * MEMBER, "seconds": 10.0 + n, "peak_mb": 1000.0,
        "timings_s": {"load": 1.0, "write": float(n)}, "peak_memory_mb": {"write": 900.0},
        "date": "2026-01-01", "command": "python samples/scale/measure.py", "is_quick": False,
        "environment": ENVIRONMENT,
    }  # fmt: skip
    if row.has_copy:
        found["copy_s"] = [0.5 * n, 1.5 * n]
    if row.has_export:
        found["export_s"] = 10.0
    return found | more


def verdict(key, *rows, notes=None):
    return verdicts.judge(GOALS[key], rows, notes or {})


# -- children --------------------------------------------------------------------------------------


def measured_child(code, limit_s=60.0, least_mb=0.0):
    """The account of a child, taken in a process that is as small as `measure.py`."""
    driver = (
        "import json, sys, dataclasses, child; from pathlib import Path; "
        f"child.LEAST_AVAILABLE_MB = {least_mb}; "
        f"account = child.run_child([sys.executable, '-c', {code!r}], Path('.'), {limit_s}); "
        "print(json.dumps(dataclasses.asdict(account)))"
    )
    done = subprocess.run([sys.executable, "-c", driver], cwd=FOLDER, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_the_peak_of_a_child_is_what_it_held_at_most_not_what_it_holds_at_the_end():
    plain = measured_child("pass")
    large = measured_child("x = bytearray(300_000_000); del x")
    assert 3 < plain["peak_mb"] < 80
    assert large["peak_mb"] - plain["peak_mb"] == pytest.approx(300, abs=30)
    assert (large["exit_code"], large["stopped"]) == (0, "")


def test_a_child_is_heard_and_its_end_is_told():
    said = measured_child("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    assert (said["exit_code"], said["stdout"], said["stderr"]) == (7, "out\n", "err\n")
    killed = measured_child("import os; os.kill(os.getpid(), 9)")
    assert (killed["exit_code"], killed["stopped"]) == (-9, "")


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"limit_s": 0.2}, "stopped after 0.2 s"), ({"least_mb": 1e12}, "stopped: the machine had ")],
    ids=["time", "memory"],
)
def test_a_child_that_takes_too_much_is_stopped(limits, reason):
    account = measured_child("import time; time.sleep(60)", **limits)
    assert account["stopped"].startswith(reason)
    assert account["exit_code"] == -9
    assert account["seconds"] < 30


def test_the_process_that_measures_is_small():
    """Linux counts what it holds as its children's."""
    code = (
        "import sys, measure; print(sorted({'torch', 'numpy', 'onnx', 'onnxruntime', 'matplotlib'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("account", "text"),
    [
        (
            child.Account(3, 1.0, 1.0, '{"error": {"message": "too large"}}', "noise", ""),
            "pack ended with exit code 3: too large",
        ),
        (child.Account(1, 1.0, 1.0, "", "Traceback\nKeyError: 1\n", ""), "pack ended with exit code 1: KeyError: 1"),
        (child.Account(-9, 1.0, 1.0, "[]", "", ""), "pack ended with exit code -9: it said nothing"),
        (child.Account(-9, 1.0, 1.0, "", "", "stopped after 5 s"), "pack was stopped after 5 s"),
    ],
    ids=["json", "traceback", "silent", "stopped"],
)  # fmt: skip
def test_a_failed_child_is_refused_in_its_own_words(account, text):
    with pytest.raises(child.ChildError) as caught:
        child.check(account, "pack")
    assert str(caught.value) == text


# -- files -----------------------------------------------------------------------------------------


def test_checkpoints_differ_in_every_float_tensor_and_are_the_same_every_time(tmp_path):
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        facts = write_checkpoints.write_checkpoints("tiny", tmp_path / name, 2)
        found += [torch.load(path, weights_only=True) for path in sorted((tmp_path / name).iterdir())]
    first, second, again, _ = found
    assert facts == {"member_bytes": 4 * 1012, "largest_tensor_bytes": 4 * 24 * 16, "n_parameters": 1012}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], second[name]) for name in first)
    networks.NETWORKS["tiny"].build().load_state_dict(first)


@pytest.mark.parametrize(("name", "count"), [("mlp", 101_252), ("vit", 86_567_656), ("resnet50", 25_557_032)])
def test_a_network_has_as_many_parameters_as_the_page_says(name, count):
    with torch.device("meta"):
        module = networks.NETWORKS[name].build()
    assert sum(parameter.numel() for parameter in module.parameters()) == count


def test_links_take_the_files_in_turn(tmp_path):
    files = [tmp_path / name for name in "ab"]
    for file in files:
        file.write_text(file.name)
    links = disk.link_members(files, tmp_path / "members", 5, 2)
    assert [link.read_text() for link in links] == ["a", "b", "a", "b", "a"]
    assert os.stat(links[4]).st_ino == os.stat(files[0]).st_ino
    assert [path.name for path in sorted((tmp_path / "members").iterdir())] == [link.name for link in links]


def test_a_copy_is_timed_and_removed(tmp_path):
    (tmp_path / "a").write_bytes(os.urandom(20_000_000))
    assert disk.time_copy([tmp_path / "a"], tmp_path / "copy") > 0
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_disk_that_is_too_small_is_told_with_both_numbers(tmp_path):
    assert disk.missing_space(tmp_path, 1) == ""
    assert disk.missing_space(tmp_path, 10**18).startswith("needs 1000000000.0 GB of disk, ")


# -- goals -----------------------------------------------------------------------------------------


def test_the_larger_ensemble_is_30_gb_and_of_two_files():
    (row,) = plan.select(["larger"])
    assert (row.n_files, row.validate) == (2, "none")
    assert 4 * 86_567_656 * row.n_members >= verdicts.LARGER_BYTES


@pytest.mark.parametrize(
    ("key", "good", "bad", "measured"),
    [
        ("memory vit-16", {"peak_mb": 1489}, {"peak_mb": 1491}, "1489 of 1490 MB"),
        ("memory vit-10-validated", {"peak_mb": 5497}, {"peak_mb": 5499}, "5497 of 5498 MB"),
        ("time vit-10", {"seconds": 25.9}, {"seconds": 26.1}, "25.9 of 26.0 s: 1.29 x (10.0 + 10.0 s)"),
        ("many", {"seconds": 59.9, "peak_mb": 2999}, {"seconds": 59.9, "peak_mb": 3001}, "59.9 s, 2999 MB"),
        ("many", {"seconds": 59.9, "peak_mb": 2999}, {"seconds": 60.1, "peak_mb": 2999}, "59.9 s, 2999 MB"),
        ("larger", {"peak_mb": 3999}, {"peak_mb": 4001}, "30.1 GB on a machine of 25.0 GB, 3999 MB"),
        (
            "larger", {"peak_mb": 3999}, {"environment": ENVIRONMENT | {"memory_mb": 64_000}},
            "30.1 GB on a machine of 25.0 GB, 3999 MB",
        ),
    ],
    ids=["memory", "validated", "time", "many", "many-slow", "larger", "larger-than-what"],
)  # fmt: skip
def test_a_goal_is_met_or_missed_with_its_reason(key, good, bad, measured):
    (name,) = GOALS[key].needs
    met = verdict(key, record(name, **good), notes={key: "a slow disk"})
    assert (met.is_met, met.measured, met.reason) == (True, measured, "")
    missed = verdict(key, record(name, **bad), notes={key: "a slow disk"})
    assert (missed.is_met, missed.reason) == (False, "a slow disk")


def test_growth_is_a_line_no_steeper_than_one_and_a_half_copies():
    copied = [record(name) for name in verdicts.GROWTH]
    assert verdicts.line_of(copied) == pytest.approx((10.0, 1 / 0.346))
    assert verdicts.copy_s_per_gb(copied) == pytest.approx(1 / 0.346)
    met = verdict("growth", *copied)
    assert met.measured == "10.0 s + 2.89 s a GB, 1.00 x a copy's 2.89; 0.0% off the line"
    assert met.is_met is True
    steep = [one | {"seconds": 10 + 1.6 * one["n_members"]} for one in copied]
    assert verdict("growth", *steep).is_met is False
    bent = [one | {"seconds": 10 + (8 if one["n_members"] == 10 else 0)} for one in copied]
    assert verdict("growth", *bent).is_met is False
    assert verdict("growth", *copied[:2]).is_met is None


@pytest.mark.parametrize(
    ("row", "is_met", "reason"),
    [
        (record("vit-4", is_quick=True), None, "a quick run, on another network"),
        (record("vit-4", validate="all"), None, "measured with validation of all members"),
        (record("vit-4", error="stopped after 5 s"), False, "stopped after 5 s"),
        (record("vit-10"), None, ""),
    ],
    ids=["quick", "validated", "failed", "other"],
)
def test_what_was_not_measured_as_the_goal_says_does_not_meet_it(row, is_met, reason):
    found = verdict("memory vit-4", row)
    assert (found.is_met, found.reason) == (is_met, reason)


def test_every_goal_has_its_rows_and_notes_name_goals():
    assert {name for goal in GOALS.values() for name in goal.needs} <= set(plan.NAMES)
    rows = {row.name: row for row in plan.ROWS}
    assert all(rows[name].validate == goal.validate for goal in GOALS.values() for name in goal.needs)
    assert set(verdicts.read_notes()) <= set(GOALS)


# -- the page --------------------------------------------------------------------------------------


def test_the_page_shows_goals_rows_stages_and_what_is_missing():
    rows = [record("vit-10"), record("larger"), record("vit-4", error="no | space")]
    text = report.page(rows, {}, has_picture=True)
    for part in (
        "2026-01-01: a processor, 2 cores, 25.0 GB of memory, torch 2",
        "| 20.0 of 26.0 s: 1.00 x (10.0 + 10.0 s) | yes |",
        "| one member + one packed tensor + 1 GB | - | no: no \\| space |",
        "60 s, 3000 MB | - | not measured |",
        "3 of 5 judged goals are met; 3 are not judged.",
        "| vit-10 | ViT-B, 224x224 | 10 | none | 3460 | 20.0 | 1000 | 5.0 and 15.0 | 10.0 |",
        "| mlp-1000 | - | - | - | - | - | - | - | - |",
        "- vit-4: no \\| space.",
        "The 87 checkpoints of `larger` are hard links to 2 files in turn",
        "| vit-10 | 1.0 | 10.0 (900) |",
        "](scale.svg)",
    ):
        assert part in text
    assert "](scale.svg)" not in report.page([], {}, has_picture=False)


def test_the_committed_page_is_what_the_committed_measurements_make():
    docs = ROOT / "docs"
    found = records.read_records(docs / "scale.json")
    assert not any(one["is_quick"] for one in found)
    made = report.page(found, verdicts.read_notes(), has_picture=(docs / "scale.svg").exists())
    assert (docs / "scale.md").read_text() == made, "run samples/scale/report.py"


def test_the_picture_has_the_curves_and_the_same_numbers_give_the_same_bytes(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [record(f"resnet50-{n}") for n in (1, 4, 16)] + [record("vit-4"), record("larger")]
    for name in ("a.svg", "b.svg"):
        assert picture.draw_curves(rows, tmp_path / name)
    drawn = (tmp_path / "a.svg").read_bytes()
    assert drawn == (tmp_path / "b.svg").read_bytes()
    assert drawn.count(b'id="axes_') == 4
    assert not picture.draw_curves([record("mlp-1000-validated")], tmp_path / "c.svg")
    rows[0] |= {"peak_mb": 700.0}
    assert picture.draw_curves(rows, tmp_path / "d.svg")
    assert (tmp_path / "d.svg").read_bytes() != drawn


def test_a_measurement_takes_the_place_of_the_older_one(tmp_path):
    rows = [record("vit-4"), record("larger")]
    new = record("vit-4", seconds=1.0)
    rows = records.replaced(rows, new)
    rows = records.replaced(rows, record("mlp-10"))
    records.write_records(tmp_path / "scale.json", rows)
    assert records.read_records(tmp_path / "scale.json") == [record("mlp-10"), new, record("larger")]
    assert records.find([record("vit-4", error="no space")], "vit-4") is None


# -- the command -----------------------------------------------------------------------------------


def measure(folder, *more):
    command = [sys.executable, "measure.py", "--quick", "--folder", str(folder / "work"), "-o", str(folder), *more]
    return subprocess.run(command, cwd=FOLDER, check=False, capture_output=True, text=True)


def check_quick(folder, names):
    """The rows were measured, the page has all of them, and nothing else is left."""
    found = {one["name"]: one for one in records.read_records(folder / "scale.json")}
    assert set(found) == set(names)
    for one in found.values():
        assert "error" not in one
        assert one["seconds"] > sum(one["timings_s"].values()) > 0
        assert 100 < one["peak_mb"] < 2000  # torch and ONNX Runtime alone are more, a tiny network is not
        assert one["packed_bytes"] > 0.9 * one["n_members"] * one["member_bytes"]
    page = (folder / "scale.md").read_text()
    assert all(f"| {name} | " in page for name in plan.NAMES)
    assert str(folder) not in page + (folder / "scale.json").read_text()
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".svg") == ["scale.json", "scale.md"]
    return found


def test_a_quick_row_is_measured_from_end_to_end_and_can_be_resumed(tmp_path):
    done = measure(tmp_path, "--only", "vit-10")
    assert done.returncode == 0, done.stderr
    found = check_quick(tmp_path, ["vit-10"])["vit-10"]
    assert (found["network"], found["n_members"], found["is_quick"]) == ("MLP 24-16-16-20", 10, True)
    assert found["command"] == "python samples/scale/measure.py --only vit-10 --quick"
    assert found["export_s"] > 0
    assert len(found["copy_s"]) == 2
    again = measure(tmp_path, "--only", "vit-10", "--resume")
    assert again.stderr == "written: scale.md\n"


@pytest.mark.slow
def test_all_quick_rows_are_measured(tmp_path):
    done = measure(tmp_path)
    assert done.returncode == 0, done.stderr
    found = check_quick(tmp_path, plan.NAMES)
    assert (found["larger"]["n_members"], found["larger"]["n_files"]) == (87, 2)
    assert {name for name, one in found.items() if "copy_s" in one} == set(verdicts.GROWTH)
    assert "not measured" not in (tmp_path / "scale.md").read_text()


def test_a_row_that_fails_is_kept_with_its_reason_and_the_folder_is_cleaned(tmp_path):
    done = measure(tmp_path, "--only", "mlp-10", "--limit-s", "0.5")
    assert done.returncode == 1
    (found,) = records.read_records(tmp_path / "scale.json")
    assert found["error"] == "write_checkpoints.py was stopped after 0.5 s"
    assert "- mlp-10: write_checkpoints.py was stopped after 0.5 s." in (tmp_path / "scale.md").read_text()
    assert not (tmp_path / "work").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_that_is_terminated_leaves_no_child_and_no_folder(tmp_path):
    command = [sys.executable, "measure.py", "--quick", "--folder", str(tmp_path / "work"), "-o", str(tmp_path)]
    process = subprocess.Popen([*command, "--only", "mlp-1000"], cwd=FOLDER, stderr=subprocess.PIPE, text=True)
    assert "writing 1000 checkpoints" in process.stderr.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not (child_ids := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(child_ids) == 1
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, "")
    assert list(tmp_path.iterdir()) == []
    assert not Path(f"/proc/{child_ids[0]}").exists()


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_that_arrives_while_a_child_is_started_leaves_no_child(number):
    code = f"""
import signal, subprocess, sys
from pathlib import Path
import child
signal.signal(signal.{number}, lambda number, frame: sys.exit(7))
real, started = subprocess.Popen, []
def interrupted(*arguments, **options):
    started.append(real(*arguments, **options))
    signal.raise_signal(signal.{number})
    return started[0]
subprocess.Popen = interrupted
try:
    child.run_child([sys.executable, "-c", "import time; time.sleep(60)"], Path("."), 60.0)
except SystemExit as end:
    print(end.code, started[0].returncode)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("7 -9\n", "")


def test_an_option_that_names_nothing_is_refused(tmp_path):
    done = measure(tmp_path, "--only", "vit-*,mlp-11")
    assert done.returncode == 2
    assert "unknown --only mlp-11: expected some of resnet50-1, " in done.stderr
