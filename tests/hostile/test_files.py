"""Every hostile file: the documented code and exit, nothing left, no payload run, little time and memory."""

import pickle
import subprocess
import sys

import pytest
import torch

from tests.hostile.attempt import Result, attempt
from tests.hostile.cases import EXITS, Case
from tests.hostile.everything import all_cases
from tests.hostile.payloads import PAYLOADS, in_zip, system
from tests.hostile.table import table

CASES = all_cases()


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_a_hostile_file_does_no_harm(case, tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "here"))
    assert attempt(case, tmp_path / "files").faults(case) == []


def test_there_are_as_many_files_as_are_promised():
    assert len({case.id for case in CASES}) == len(CASES) >= 400
    assert len(PAYLOADS) >= 200
    assert sum(case.code is None for case in CASES) >= 25, "honest files, so that refusing everything fails"


@pytest.mark.parametrize("protocol", range(6))
def test_the_payloads_are_real(protocol, tmp_path):
    pickle.loads(system(str(tmp_path / "canary"), protocol))
    assert (tmp_path / "canary").exists()


def result(**facts):
    return Result(
        **{
            "code": "E_CHECKPOINT",
            "exit_code": 3,
            "message": "",
            "seconds": 0.1,
            "growth_bytes": 0,
            "left": [],
            "is_canary_there": False,
            "size_bytes": 9,
            **facts,
        }
    )


@pytest.mark.parametrize(
    ("facts", "fault"),
    [
        ({"code": None, "exit_code": 0}, "expected E_CHECKPOINT, got None"),
        ({"exit_code": 1}, "with exit code 1"),
        ({"message": "try weights_only"}, "advises against safety"),
        ({"is_canary_there": True}, "the payload ran"),
        ({"left": ["/tmp/x"]}, "left behind: /tmp/x"),
        ({"seconds": 2.5}, "took 2.5 s"),
        ({"growth_bytes": 2**27}, "took 128 MiB"),
    ],
)
def test_every_kind_of_harm_is_seen_and_counted(facts, fault):
    case = Case("row", "name", None)
    assert result().faults(case) == []
    assert fault in "".join(result(**facts).faults(case))
    lines, faults = table([(case, result()), (case, result(**facts))])
    assert len(faults) == 1
    assert lines[2] == lines[3].replace("**all**", "row")
    right = 1 + (not fault.startswith(("expected", "with")))
    assert lines[2].startswith(f"| row | 2 | {right} | {int('left' in facts)} | {int('is_canary_there' in facts)} |")


PICKED = (
    "truncated: zip, half",
    "pickles with a payload: os.system in a zip",
    "TorchScript and .pt2: TorchScript, with a payload",
    "deep and unfolding pickles: a deep tuple as a key, which ends the process in torch 2.13",
)


@pytest.mark.parametrize("name", PICKED)
def test_the_command_line_says_the_same(name, tmp_path):
    case = next(case for case in CASES if case.id == name)
    (tmp_path / "files").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "model.py").write_text("from torch import nn\n\n\ndef net():\n    return nn.Linear(3, 2)\n")
    path = case.make(tmp_path / "files")
    command = [
        "pack",
        str(path),
        "-o",
        "out.onnx",
        "--model",
        f"{tmp_path / 'model.py'}:net",
        "--input",
        "x:float32[batch,3]",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "ensexport", *command], cwd=tmp_path / "here", capture_output=True, text=True
    )
    assert done.returncode == EXITS[case.code], done.stderr
    assert "Traceback" not in done.stderr
    assert path.name in done.stderr
    assert "weights_only" not in done.stderr
    assert list((tmp_path / "here").iterdir()) == []
    assert not (tmp_path / "files" / "canary").exists()


def test_torch_alone_takes_numbers_on_trust(tmp_path):
    """The reason for walking pickles first: torch's safe loader takes memory that no one wrote."""
    (tmp_path / "m.pt").write_bytes(in_zip(b"\x80\x02ctorch\nTensor\nM\x00\x10\x85R."))
    assert torch.load(tmp_path / "m.pt", weights_only=True).numel() == 4096
