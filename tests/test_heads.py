"""Combined outputs: every name against the oracle, as a graph, in ONNX Runtime and in TorchScript."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ensexport.batching.engine import BatchedGraph
from ensexport.combined_reference import combine
from ensexport.emission import QUANTITIES, OutputEmission
from ensexport.heads import add_heads
from ensexport.weighting import MemberWeights
from tests.batching.runs import Run, batched, fx_run, onnx_run, torchscript_run

COMBINED = tuple(name for name in QUANTITIES if name != "members")


class _Adds(nn.Module):
    """Returns its input plus its own scores: what the members return is what the test says."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scores


def _graph(
    scores: Tensor,
    *names: str,
    spec: str | None = None,
    class_axis: int = -1,
    weights: MemberWeights | None = None,
    member_axis: int = 0,
) -> tuple[BatchedGraph, dict[str, Tensor]]:
    """The graph of members that add `scores[k]`, each of them `(1, ...)`, to a dynamic batch."""
    dims = ",".join(map(str, scores.shape[2:]))
    kind = str(scores.dtype).removeprefix("torch.")
    plain, _ = batched([_Adds(own) for own in scores], spec or f"x:{kind}[batch,{dims}]", member_axis=member_axis)
    graph = add_heads(plain, [OutputEmission("y", names, class_axis)], weights)
    members = [dict(_Adds(own).named_parameters()) for own in scores]
    return graph, graph.weights.pack(members, len(scores))


def _runs(graph: BatchedGraph, weights: dict[str, Tensor], folder: Path) -> dict[str, Run]:
    return {
        "graph": fx_run(graph, weights),
        "onnx": onnx_run(graph, weights, folder),
        "torchscript": torchscript_run(graph, weights),
    }


def _scores(n_members: int, *shape: int, scale: float = 3.0, seed: int = 0, dtype: str = "float32") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n_members, 1, *shape, generator=generator) * scale).to(getattr(torch, dtype))


def _check(
    runs: dict[str, Run],
    scores: Tensor,
    names: Sequence[str],
    *,
    extra: Sequence[Tensor] = (),
    weights: Sequence[float] | None = None,
    class_axis: int = -1,
    tolerance: float = 2e-6,
) -> None:
    for how, run in runs.items():
        for batch in (1, 3):
            x = torch.randn(batch, *scores.shape[2:], generator=torch.Generator().manual_seed(batch)).to(scores.dtype)
            members = (x + scores).to(torch.float64).numpy()
            for name, actual in zip(names, run([x, *extra]), strict=False):
                expected = combine(name, members, class_axis=class_axis, weights=weights)
                assert actual.dtype == scores.dtype, (how, name)
                assert actual.shape == expected.shape, (how, name)
                bound = tolerance * max(1.0, float(np.abs(expected[np.isfinite(expected)]).max()))
                np.testing.assert_allclose(
                    actual.to(torch.float64).numpy(), expected, rtol=0, atol=bound, err_msg=f"{name} in {how}"
                )


@pytest.mark.parametrize("member_axis", [0, 1])
@pytest.mark.parametrize("n_members", [1, 2, 5])
def test_every_name_equals_the_oracle(tmp_path: Path, n_members: int, member_axis: int) -> None:
    scores = _scores(n_members, 7)
    graph, weights = _graph(scores, *COMBINED, member_axis=member_axis)
    assert graph.n_hidden == 1
    _check(_runs(graph, weights, tmp_path), scores, COMBINED)
