"""Combined outputs: every name against the oracle, as a graph, in ONNX Runtime and in TorchScript."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from ensexport.batching.engine import BatchedGraph
from ensexport.combined_reference import combine
from ensexport.emission import QUANTITIES, OutputEmission
from ensexport.errors import UsageError
from ensexport.heads import add_heads
from ensexport.weighting import MemberWeights
from tests.batching.runs import Run, batched, fx_run, onnx_run, torchscript_run

COMBINED = tuple(name for name in QUANTITIES if name != "members")
QUANTILES = ("q1", "q10", "q25", "q50", "q90", "q99")


def quiet() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return options


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


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("n_members", [1, 2, 11])
def test_quantiles(tmp_path: Path, n_members: int, dtype: str) -> None:
    scores = _scores(n_members, 7, dtype=dtype)
    graph, weights = _graph(scores, *QUANTILES, "median", member_axis=n_members % 2)
    tolerance = {"float32": 2e-6, "float16": 1e-3}[dtype]
    _check(_runs(graph, weights, tmp_path), scores, (*QUANTILES, "median"), tolerance=tolerance)


def test_quantiles_of_weighted_members_are_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot emit 'q10' of output 'y' with member weights.*Valid for it: members"):
        _graph(_scores(3, 4), "mean", "q10", weights=MemberWeights())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_are_rounded_once(tmp_path: Path, dtype: str) -> None:
    """A thousand members: a float16 sum of them would be off in the third digit."""
    scores = _scores(1000, 3, dtype=dtype)
    graph, weights = _graph(scores, *COMBINED)
    tolerance = {"float16": 1e-3, "bfloat16": 8e-3, "float64": 1e-12}[dtype]
    x = torch.zeros(2, 3, dtype=scores.dtype)
    members = scores.to(torch.float64).expand(-1, 2, -1).numpy()
    for run in (fx_run(graph, weights), torchscript_run(graph, weights)):
        for name, actual in zip(COMBINED, run([x]), strict=False):
            expected = combine(name, members)
            assert actual.dtype == scores.dtype
            bound = tolerance * max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(actual.to(torch.float64).numpy(), expected, rtol=0, atol=bound, err_msg=name)


def test_far_apart_and_masked_scores(tmp_path: Path) -> None:
    scores = torch.zeros(3, 1, 4)
    scores[0, 0] = torch.tensor([1e4, -1e4, 0.0, -torch.inf])
    scores[1, 0] = torch.tensor([-1e4, 1e4, 0.0, -torch.inf])
    scores[2, 0] = torch.tensor([0.0, 0.0, 0.0, -torch.inf])
    names = ("probs", "logprobs", "vote", "entropy", "expected_entropy", "mutual_information")
    graph, weights = _graph(scores, *names)
    for run in _runs(graph, weights, tmp_path).values():
        for name, actual in zip(names, run([torch.zeros(1, 4)]), strict=False):
            np.testing.assert_allclose(actual.numpy(), combine(name, scores.numpy()), rtol=1e-6, atol=1e-6)
            assert not torch.isnan(actual).any()


@pytest.mark.parametrize("n_members", [1, 3, 7])
@pytest.mark.parametrize("weights", [None, MemberWeights()], ids=["alike", "weights"])
def test_equal_members_tell_nothing_of_each_other(
    tmp_path: Path, n_members: int, weights: MemberWeights | None
) -> None:
    scores = _scores(1, 5, scale=4.0).expand(n_members, -1, -1)
    graph, packed = _graph(scores, "mutual_information", "vote", weights=weights)
    x = torch.randn(6, 5)
    extra = [] if weights is None else [torch.full((n_members,), 0.3)]
    for run in _runs(graph, packed, tmp_path).values():
        information, vote = run([x, *extra])[:2]
        assert (information == 0).all()
        assert set(vote.unique().tolist()) == {0.0, 1.0}


def test_ties_of_votes_go_to_the_first_class(tmp_path: Path) -> None:
    scores = torch.tensor([[[1.0, 2.0, 2.0]], [[3.0, 3.0, 0.0]]])
    graph, weights = _graph(scores, "vote")
    for run in _runs(graph, weights, tmp_path).values():
        assert run([torch.zeros(1, 3)])[0].tolist() == [[0.5, 0.5, 0.0]]


@pytest.mark.parametrize("member_axis", [0, 1])
@pytest.mark.parametrize("class_axis", [1, -3])
def test_the_class_axis_of_an_image(tmp_path: Path, class_axis: int, member_axis: int) -> None:
    scores = _scores(3, 4, 5, 2)
    graph, weights = _graph(scores, *COMBINED, class_axis=class_axis, member_axis=member_axis)
    _check(_runs(graph, weights, tmp_path), scores, COMBINED, class_axis=class_axis)


@pytest.mark.parametrize("values", [(1, 1, 1, 1, 1), (0, 3, 0, 1, 2), (0, 0, 0.1, 0, 0), (0.1, 0.2, 0.3, 0.25, 0.15)])
@pytest.mark.parametrize("is_input", [True, False], ids=["input", "baked"])
def test_weights(tmp_path: Path, values: tuple[float, ...], is_input: bool) -> None:
    scores = _scores(5, 6)
    given = MemberWeights() if is_input else MemberWeights(tuple(map(float, values)))
    graph, weights = _graph(scores, *COMBINED, weights=given)
    extra = [torch.tensor(values, dtype=torch.float32)] if is_input else []
    _check(_runs(graph, weights, tmp_path), scores, COMBINED, extra=extra, weights=values)


@pytest.mark.parametrize("unit", [1e-300, 1e307], ids=["tiny", "huge"])
def test_baked_weights_of_any_size(tmp_path: Path, unit: float) -> None:
    scores = _scores(3, 4)
    graph, weights = _graph(scores, *COMBINED, weights=MemberWeights((9 * unit, 9 * unit, unit / 1e5)))
    _check(_runs(graph, weights, tmp_path), scores, COMBINED, weights=[9, 9, 1e-5])


def test_a_member_left_out_may_be_anything(tmp_path: Path) -> None:
    scores = _scores(4, 6)
    scores[1], scores[3] = torch.nan, torch.inf
    graph, weights = _graph(scores, *COMBINED, weights=MemberWeights((1.0, 0.0, 2.0, 0.0)))
    _check(_runs(graph, weights, tmp_path), scores, COMBINED, weights=[1, 0, 2, 0])


def test_what_weights_of_zero_leave_equals_packing_the_others(tmp_path: Path) -> None:
    scores = _scores(4, 6)
    all_graph, all_weights = _graph(scores, *COMBINED, weights=MemberWeights())
    half_graph, half_weights = _graph(scores[::2], *COMBINED)
    x = torch.randn(3, 6)
    chosen = torch.tensor([1.0, 0.0, 1.0, 0.0])
    halves = _runs(half_graph, half_weights, tmp_path)
    for how, run in _runs(all_graph, all_weights, tmp_path).items():
        for name, left, right in zip(COMBINED, run([x, chosen]), halves[how]([x]), strict=False):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6, msg=f"{name} in {how}")


def test_weights_are_optional_in_onnx_and_torchscript(tmp_path: Path) -> None:
    scores = _scores(3, 4)
    graph, weights = _graph(scores, "mean", "std", weights=MemberWeights())
    runs = _runs(graph, weights, tmp_path)
    x = torch.randn(2, 4)
    expected = combine("mean", (x + scores).numpy())
    np.testing.assert_allclose(runs["torchscript"]([x])[0].numpy(), expected, rtol=1e-5, atol=1e-6)
    model = onnx.load(tmp_path / "graph.onnx")
    assert [value.name for value in model.graph.input] == ["x", "member_weights"]
    session = ort.InferenceSession(model.SerializeToString(), quiet(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected, rtol=1e-5, atol=1e-6)
    uneven = {"x": x.numpy(), "member_weights": np.array([1, 0, 0], np.float32)}
    np.testing.assert_allclose(session.run(None, uneven)[0], (x + scores[0]).numpy(), rtol=1e-5, atol=1e-6)


def test_integers_have_extremes(tmp_path: Path) -> None:
    scores = _scores(3, 4, scale=100).to(torch.int64)
    for given, values in ((None, None), (MemberWeights((1.0, 0.0, 1.0)), [1, 0, 1])):
        graph, weights = _graph(scores, "min", "max", weights=given)
        _check(_runs(graph, weights, tmp_path), scores, ("min", "max"), weights=values, tolerance=0)


def test_members_stand_where_asked_and_the_rest_is_batch_first(tmp_path: Path) -> None:
    scores = _scores(3, 4)
    graph, weights = _graph(scores, "mean", "members", member_axis=1)
    assert graph.n_hidden == 0
    for run in _runs(graph, weights, tmp_path).values():
        mean, members = run([torch.zeros(2, 4)])
        assert (tuple(mean.shape), tuple(members.shape)) == ((2, 4), (2, 3, 4))


def test_nothing_changes_where_only_members_are_asked_for() -> None:
    plain, _ = batched([_Adds(own) for own in _scores(2, 4)], "x:float32[batch,4]")
    assert add_heads(plain, [OutputEmission("y")]) is plain


@pytest.mark.parametrize(
    ("scores", "options", "fact"),
    [
        pytest.param(
            torch.zeros(2, 1), {"names": ("probs",)},
            r"cannot emit 'probs' of output 'y': axis -1 of one member's output \(\?\) holds no classes.* "
            "Valid for it: members, mean, var, std, min, max, median",
            id="batch-is-no-class-axis",
        ),
        pytest.param(torch.zeros(2, 1, 1), {"names": ("entropy",)}, r"\(\?, 1\) holds no classes", id="one-class"),
        pytest.param(
            torch.zeros(2, 1, 3), {"names": ("vote",), "class_axis": 2}, "and no axis 2 to hold classes", id="axis"
        ),
        pytest.param(
            torch.zeros(2, 1, 3, dtype=torch.int64), {"names": ("mean",)},
            "cannot emit 'mean' of output 'y': it is int64. Valid for it: members, min, max", id="integers",
        ),
        pytest.param(
            torch.zeros(2, 1, 3), {"names": ("members",), "weights": MemberWeights()},
            "member weights are given, and nothing is combined", id="nothing-to-weigh",
        ),
        pytest.param(
            torch.zeros(2, 1, 3), {"names": ("mean",), "weights": MemberWeights((1.0,))},
            "1 member weights are given: expected 2", id="too-few-weights",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_what_can(scores: Tensor, options: dict[str, Any], fact: str) -> None:
    names = options.pop("names")
    with pytest.raises(UsageError, match=fact):
        _graph(scores, *names, **options, spec="x:float32[batch]" if scores.dim() == 2 else None)


class _Pooled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).mean(0)


def test_members_of_an_output_without_a_batch_stay_in_front() -> None:
    plain, _ = batched([_Pooled(1.0), _Pooled(2.0)], "x:float32[batch,4]", member_axis=1)
    with pytest.raises(UsageError, match=r"shape \(4\) has no batch. Valid for it: --member-axis 0, or to emit mean"):
        add_heads(plain, [OutputEmission("y")])
    assert add_heads(plain, [OutputEmission("y", ("mean",))]).n_hidden == 1


def test_an_input_called_like_the_weights() -> None:
    plain, _ = batched([_Adds(own) for own in _scores(2, 4)], "member_weights:float32[batch,4]")
    with pytest.raises(UsageError, match="the model has an input 'member_weights' of its own"):
        add_heads(plain, [OutputEmission("y", ("mean",))], MemberWeights())
