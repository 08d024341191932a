"""Choosing among candidates that were timed."""

import json

import onnx
import pytest
import torch
from torch import nn

import ensexport
from ensexport.errors import ProviderError, UsageError
from ensexport.runtime import read_metadata
from ensexport.spec import Trial
from ensexport.strategies import choose


def trial(candidate: str, batch: int, ratio: float) -> Trial:
    return Trial(candidate, batch, ratio, ratio, ratio, ratio)


def test_the_fastest_over_all_batch_sizes_is_kept() -> None:
    trials = [trial("stacked", 1, 1.0), trial("unrolled", 1, 1.1), trial("stacked", 8, 1.0), trial("unrolled", 8, 0.7)]
    assert choose(trials) == "unrolled"
    assert choose(trials[:2]) == "stacked"


def test_within_the_noise_the_rules_decide() -> None:
    assert choose([trial("stacked", 1, 1.0), trial("unrolled", 1, 0.99)]) == "stacked"
    assert choose([trial("stacked", 1, 1.0), trial("auto", 1, 1.01), trial("unrolled", 1, 1.0)]) == "auto"
    assert choose([trial("stacked", 1, 1.0), trial("auto", 1, 1.01), trial("unrolled", 1, 0.9)]) == "unrolled"


class Wide(nn.Module):
    """Products of 8 rows with weights of 768 x 768, for which ONNX Runtime's CPU kernels are far slower in a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 768))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def tiny() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize(("build", "width"), [(tiny, 4), (Wide, 768)])
def test_tune_writes_its_table_and_the_fastest(build, width, tmp_path) -> None:
    members = [build() for _ in range(4)]
    path = tmp_path / "e.onnx"
    report = ensexport.export(
        ensexport.stack(members), path, inputs=[f"x:float32[batch,{width}]"], per_member=["x"], strategy="tune",
        tune_batches=(1, 8), batches=(2,), seeds=(0,),
    )  # fmt: skip
    plan = report.plan
    names = list(dict.fromkeys(trial.candidate for trial in plan.trials))
    assert {"stacked", "unrolled"} <= set(names)
    assert {trial.batch for trial in plan.trials} == {1, 8}
    assert plan.winner == choose(plan.trials)
    assert "tune" in report.timings_s
    stored = read_metadata(path)["plan"]
    assert stored["winner"] == plan.winner
    assert [row["candidate"] for row in stored["trials"]] == [trial.candidate for trial in plan.trials]
    assert json.dumps(stored)


def test_the_graph_follows_the_strategy(tmp_path) -> None:
    members = ensexport.stack([tiny() for _ in range(3)])
    counts = {}
    for strategy in ("stacked", "auto", "unrolled"):
        path = tmp_path / f"{strategy}.onnx"
        ensexport.export(members, path, inputs=["x:float32[batch,4]"], strategy=strategy, batches=(2,), seeds=(0,))
        counts[strategy] = sum(node.op_type in ("Gemm", "MatMul") for node in onnx.load(path).graph.node)
    assert counts == {"stacked": 2, "auto": 2, "unrolled": 6}


def test_torchscript_alone_is_tuned_in_torch(tmp_path) -> None:
    members = ensexport.stack([tiny() for _ in range(3)])
    report = ensexport.export(
        members, tmp_path / "e.ts", inputs=["x:float32[batch,4]"], strategy="tune", batches=(2,), seeds=(0,)
    )
    assert report.plan.winner is not None


def test_an_unknown_strategy_is_refused(tmp_path) -> None:
    members = ensexport.stack([tiny() for _ in range(2)])
    with pytest.raises(
        UsageError, match="unknown strategy 'fast': expected one of 'auto', 'stacked', 'unrolled', 'tune'"
    ):
        ensexport.export(members, tmp_path / "e.onnx", inputs=["x:float32[batch,4]"], strategy="fast")
    assert not list(tmp_path.iterdir())


def test_a_target_that_is_not_there_is_refused_before_the_work(tmp_path) -> None:
    members = ensexport.stack([tiny() for _ in range(2)])
    with pytest.raises(ProviderError):
        ensexport.export(members, tmp_path / "e.onnx", inputs=["x:float32[batch,4]"], target="tensorrt")
    assert not list(tmp_path.iterdir())
