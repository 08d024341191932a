"""The standard set: the networks are the published ones, goals are judged right, the page shows what was measured."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import single_threaded_processes  # noqa: F401 - fixture

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "samples" / "benchmarks"
sys.path.insert(0, str(FOLDER))
shadowing = sys.modules.pop("models", None)  # pytest imports `tests/models` under that name too
goals, options, page, results, workloads = map(
    importlib.import_module, ("goals", "options", "page", "results", "workloads")
)
sys.modules.pop("models", None)
if shadowing is not None:
    sys.modules["models"] = shadowing
sys.path.remove(str(FOLDER))

# As torchvision, timm and the tutorial count them; BERT here has a vocabulary of its own.
PARAMETERS = {
    "mlp": 118_282, "resnet18-64": 11_689_512, "resnet18-224": 11_689_512, "resnet50": 25_557_032,
    "mobilenetv3": 2_542_856, "vit-tiny": 5_717_416, "vit-base": 86_567_656,
}  # fmt: skip
SET = {workload.name: workload for workload in workloads.WORKLOADS}


def row(batch, alternative, ratio, n_members=10, **more):
    found = {
        "batch": batch, "n_members": n_members, "alternative": alternative, "median_ms": ratio, "ratio": ratio,
        "ratio_low": 0.9 * ratio, "ratio_high": 1.1 * ratio, "calls": 3, "memory_mb": 50.0, "load_s": 0.1,
        "nodes": None, "roofline_share": None,
    }  # fmt: skip
    if alternative == "packed":  # what ratios refer to
        found |= {"ratio_low": 1.0, "ratio_high": 1.0}
    return found | more


def run(workload, rows, **more):
    found = {
        "workload": workload, "provider": "cpu", "dtype": "float32", "n_members": 10, "target": "portable",
        "date": "2026-01-01", "command": "python samples/benchmarks/run.py", "skipped": [], "not_loaded": {},
    }  # fmt: skip
    return found | more | {"results": rows}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_network_has_as_many_parameters_as_the_published_one(name):
    with torch.device("meta"):
        module = SET[name].build()
    assert sum(parameter.numel() for parameter in module.parameters()) == PARAMETERS[name]


def test_members_are_the_same_every_time_and_differ_in_their_seed(tmp_path):
    written = []
    for number, n_members in enumerate((1, 2)):
        (tmp_path / str(number)).mkdir()
        written += workloads.write_members(SET["mlp"], tmp_path / str(number), n_members, "float16")
    first, again, second = map(load_file, written)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["1.weight"], second["1.weight"])
    assert first["1.weight"].dtype == torch.float16


def test_batch_norms_have_statistics_of_their_own():
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(100))
    workloads._draw_statistics(module)
    assert 0.05 < module[0].running_mean.std() < 0.2
    assert 0.5 <= module[0].running_var.min() < module[0].running_var.max() <= 1.5


def test_the_run_writes_measurements_and_page_and_can_be_resumed(tmp_path):
    command = [sys.executable, "run.py", "--only", "mlp", "--members", "2", "--batch", "1,8", "--blocks", "3"]
    command += ["--alternatives", "loop", "--max-call-s", "1e-9", "-o", str(tmp_path)]
    told = subprocess.run(command, cwd=FOLDER, check=True, capture_output=True, text=True).stderr
    assert "measuring batch []" in told
    command += ["--max-call-s", "60", "--batch", "1"]
    subprocess.run(command, cwd=FOLDER, check=True, capture_output=True)
    (found,) = results.read_runs(tmp_path / "benchmarks.json")
    assert results.key_of(found) == ("mlp", "cpu", "float32", 2)
    assert [one["alternative"] for one in found["results"]] == ["packed", "packed-again", "loop"]
    assert found["pack"]["max_error"] < 1e-5
    assert found["skipped"] == []
    text = (tmp_path / "benchmarks.md").read_text()
    assert f"| 1 | loop | {found['results'][2]['ratio']:.2f} |" in text
    assert results.is_finished([found], results.key_of(found), [1])
    assert not results.is_finished([found], results.key_of(found), [1, 8])
    done = subprocess.run([*command, "--resume"], cwd=FOLDER, check=True, capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no CUDA")
def test_without_cuda_it_ends_with_7_and_says_what_is_missing():
    command = [sys.executable, "run.py", "--provider", "cuda,tensorrt", "--check"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert done.stderr.startswith("cuda: ")
    assert "Traceback" not in done.stderr


def test_the_large_ensembles_come_last_and_on_a_gpu_those_with_goals_first(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py"])
    jobs = [(job[0].name, job[3]) for job in options.jobs(options.parse(), ["cpu"])]
    assert len(jobs) == 2 * len(SET)
    assert jobs[:2] == [("mlp", 5), ("mlp", 10)]
    assert jobs[-3:] == [("resnet50", 10), ("bert-base", 10), ("vit-base", 10)]
    monkeypatch.setattr(sys, "argv", ["run.py", "--dtype", "tf32,bfloat16", "--members", "10"])
    jobs = [(job[0].name, job[1], job[2]) for job in options.jobs(options.parse(), ["cuda", "tensorrt"])]
    assert jobs[:2] == [("mlp", "cuda", "tf32"), ("resnet18-224", "cuda", "tf32")]
    assert {job[2] for job in jobs if job[1] == "tensorrt"} == {"tf32"}


def test_an_option_that_names_nothing_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", "--only", "mlp,lenett"])
    with pytest.raises(SystemExit, match="2"):
        options.parse()
    assert "unknown --only lenett: expected some of mlp, " in capsys.readouterr().err


MLP_GOAL = goals.Goal("mlp", 10, 1, "strong-loop", 1.3)
NOTES = {MLP_GOAL.name: "the wide layer is bound by memory", "lenet": "small convolutions"}


def test_a_goal_is_met_or_missed_with_its_reason_or_not_measured():
    rows = [row(1, "packed", 1.0), row(1, "packed-again", 1.02), row(1, "strong-loop", 1.31)]
    met = goals.judge(MLP_GOAL, [run("mlp", rows)], NOTES)
    assert (met.is_met, met.measured, met.noise, met.reason) == (True, 1.31, 1.02, "")
    assert met.interval == pytest.approx((0.9 * 1.31, 1.1 * 1.31))
    rows[2] = row(1, "strong-loop", 1.29)
    missed = goals.judge(MLP_GOAL, [run("mlp", rows)], NOTES)
    assert (missed.is_met, missed.reason) == (False, "the wide layer is bound by memory")
    assert goals.judge(MLP_GOAL, [run("mlp", rows)], {}).reason == ""
    for runs in ([], [run("mlp", rows, n_members=5)], [run("lenet", rows)]):
        absent = goals.judge(MLP_GOAL, runs, {})
        assert (absent.is_met, absent.measured, absent.reason) == (None, None, "")


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"skipped": [{"batch": 1, "estimate_s": 7.5}]}, "one call would take about 7.5 s"),
        ({"error": "MismatchError: differs"}, "MismatchError: differs"),
        ({"left_out": {"strong-loop": "no memory"}}, "no memory"),
    ],
)
def test_what_was_not_measured_says_why(facts, reason):
    verdict = goals.judge(MLP_GOAL, [run("mlp", [], **facts)], {})
    assert (verdict.is_met, verdict.reason) == (None, reason)


def test_the_other_quantities_are_judged_on_a_gpu():
    nodes = {"packed": 23, "loop-bound": 200}
    rows = [row(1, kind, 1.0, nodes={"total": total, "by_op": {}}) for kind, total in nodes.items()]
    rows += [row(1, "packed-bound", 0.5), row(8, "packed", 1.0), row(8, "packed-bound", 1.0, roofline_share=0.5)]
    runs = [run("bert-base", rows, provider="cuda", dtype=dtype) for dtype in ("bfloat16", "tf32")]
    own = {"provider": "cuda", "dtypes": ("tf32", "bfloat16")}
    kernels = goals.judge(goals.Goal("bert-base", 10, 1, "loop-bound", 1.15, quantity="kernels", **own), runs, {})
    assert (kernels.measured, kernels.is_met, kernels.dtype) == (1.15, True, "tf32")
    roof = goals.judge(goals.Goal("bert-base", 10, 8, "packed-bound", 0.45, quantity="roofline", **own), runs, {})
    assert (roof.measured, roof.is_met) == (0.5, True)
    bound = goals.judge(goals.Goal("bert-base", 10, 1, "loop-bound", 3.5, "packed-bound", **own), runs, {})
    assert (bound.measured, bound.is_met) == (2.0, False)


def test_floors_and_the_mean_count_every_row():
    rows = [row(batch, kind, ratio) for kind, ratio in (("packed", 1.0), ("strong-loop", 0.96)) for batch in (1, 8)]
    rows += [row(1, "vmap-onnx", 1.0), row(8, "vmap-onnx", 4.0)]
    runs = [run("lenet", rows)]
    verdicts = [goals.judge(goal, runs, NOTES) for goal in goals.floors(runs)]
    assert [one.is_met for one in verdicts] == [False, False, True, True]
    assert verdicts[0].reason == "small convolutions"
    assert goals.mean_over_vmap(runs) == (2.0, 2)
    assert goals.mean_over_vmap([]) is None


def test_the_page_shows_goals_rows_and_what_is_missing():
    environment = {
        "provider": "cpu", "threads": 2, "processor": "a processor", "python": "3.11", "torch": "2", "onnx": "1",
        "onnxruntime": "1", "ensexport": "0", "mode": "isolated", "mode_reason": "little memory",
    }  # fmt: skip
    rows = [row(1, "packed", 1.0), row(1, "packed-again", 1.02), row(1, "strong-loop", 1.29), row(1, "vmap-onnx", 2.0)]
    more = {
        "environment": environment, "skipped": [{"batch": 64, "estimate_s": 12.3}], "left_out": {"threads": "a | b"},
        "pack": {"seconds": 3.2, "proof": "batch 2, one seed", "size_bytes": 4_700_000},
    }  # fmt: skip
    text = page.page([run("mlp", rows, **more)], [], NOTES, has_drawing=False)
    for part in (
        "2026-01-01: a processor, 2 cores, provider cpu",
        "1.29 (1.16 to 1.42) | 1.02 | no: the wide layer is bound by memory |",
        "| LeNet-class CNN, 32x32 | 10 | 1 | loop | 2.5 | - | - | not measured |",
        "| vmap-onnx, geometric mean of 1 | 1.25 | 2.00 | yes |",
        "packed in 3 s (proven at batch 2, one seed here), 4.7 MB; one alternative at a time: little memory",
        "B=64 left out, a call would take about 12.3 s; threads left out: a \\| b.",
        "| 1 | strong-loop | 1.29 | 1.16 to 1.42 | 1.29 | 0.10 | 50 | - | - |",
        "Not yet run on a GPU. `make bench-gpu` measures these",
    ):
        assert part in text
    refused = {"tensorrt": "no such library"}
    on_gpu = page.page([], [run("mlp", rows, provider="cuda", dtype="tf32", not_loaded=refused)], {}, has_drawing=True)
    assert "tensorrt did not load: no such library." in on_gpu
    assert "Not yet run" not in on_gpu
    assert "](benchmarks.svg)" in on_gpu


def test_the_committed_page_is_what_the_committed_measurements_make():
    docs = ROOT / "docs"
    cpu, gpu = (results.read_runs(docs / name) for name in ("benchmarks.json", "benchmarks-gpu.json"))
    made = page.page(cpu, gpu, goals.read_notes(), has_drawing=(docs / "benchmarks.svg").exists())
    assert (docs / "benchmarks.md").read_text() == made, "run samples/benchmarks/page.py"


def test_notes_name_goals_or_networks():
    known = {goal.name for goal in (*goals.cpu_goals(), *goals.gpu_goals())} | set(SET)
    known |= {goal.name for goal in goals.floors(results.read_runs(ROOT / "docs" / "benchmarks.json"))}
    assert set(goals.read_notes()) <= known


def test_a_measurement_takes_the_place_of_the_older_one_and_a_file_is_read_as_it_was_written(tmp_path):
    runs = [run("mlp", [row(1, "packed", 1.0)]), run("lenet", [])]
    new = run("mlp", [row(1, "packed", 1.0), row(8, "packed", 1.0)])
    results.write_runs(tmp_path / "runs.json", results.replaced(runs, new))
    assert results.read_runs(tmp_path / "runs.json") == [new, runs[1]]
    assert json.loads((tmp_path / "runs.json").read_text())["runs"][0]["results"][1]["batch"] == 8
    assert results.call_s(runs, "mlp", "cpu", "float32") == pytest.approx(1e-4)
    assert results.call_s(runs, "lenet", "cpu", "float32") is None
