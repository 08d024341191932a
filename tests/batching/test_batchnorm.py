"""Batch norms that move into the layer beside them: which do, which must not, and that the numbers stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.batching.runs import batched, capture, fx_run, ops

IMAGE, LINE, ROW = "x:float32[batch,6,5,5]", "x:float32[batch,6,7]", "x:float32[batch,6]"
Build = Callable[[], nn.Module]


class Flow(nn.Module):
    """Layers under the names the test gives them, joined as it says."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.flow = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.flow(self, x)


def trained(build: Build, n_members: int = 3) -> list[nn.Module]:
    """Members with weights and statistics of their own."""
    members = [build().eval() for _ in range(n_members)]
    for member in members:
        for module in member.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if module.track_running_stats:
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.2, 3.0)
                if module.affine:
                    nn.init.uniform_(module.weight, -2.0, 2.0)
                    nn.init.normal_(module.bias)
    return members


def seq(*builds: Build) -> Build:
    return lambda: nn.Sequential(*(build() for build in builds))


BEHIND: dict[str, tuple[Build, str]] = {
    "linear": (seq(lambda: nn.Linear(6, 4), lambda: nn.BatchNorm1d(4)), ROW),
    "linear-no-bias": (seq(lambda: nn.Linear(6, 4, bias=False), lambda: nn.BatchNorm1d(4)), ROW),
    "second-linear": (seq(lambda: nn.Linear(6, 6), nn.Tanh, lambda: nn.Linear(6, 4), lambda: nn.BatchNorm1d(4)), ROW),
    "conv1d": (seq(lambda: nn.Conv1d(6, 4, 3, padding=1), lambda: nn.BatchNorm1d(4)), LINE),
    "conv2d": (seq(lambda: nn.Conv2d(6, 4, 3, padding=1), lambda: nn.BatchNorm2d(4)), IMAGE),
    "conv2d-no-bias": (seq(lambda: nn.Conv2d(6, 4, 3, bias=False), lambda: nn.BatchNorm2d(4)), IMAGE),
    "conv2d-same": (seq(lambda: nn.Conv2d(6, 4, 3, padding="same"), lambda: nn.BatchNorm2d(4)), IMAGE),
    "conv2d-groups": (seq(lambda: nn.Conv2d(6, 4, 3, groups=2), lambda: nn.BatchNorm2d(4)), IMAGE),
    "depthwise": (seq(lambda: nn.Conv2d(6, 12, 3, groups=6, bias=False), lambda: nn.BatchNorm2d(12)), IMAGE),
    "conv3d": (
        seq(lambda: nn.Conv3d(2, 4, 2), lambda: nn.BatchNorm3d(4)),
        "x:float32[batch,2,3,4,5]",
    ),
    "transposed1d": (seq(lambda: nn.ConvTranspose1d(6, 4, 3, 2), lambda: nn.BatchNorm1d(4)), LINE),
    "transposed2d": (seq(lambda: nn.ConvTranspose2d(6, 4, 2, 2, bias=False), lambda: nn.BatchNorm2d(4)), IMAGE),
    "transposed-groups": (
        seq(lambda: nn.ConvTranspose2d(6, 8, 3, 2, 1, 1, groups=2), lambda: nn.BatchNorm2d(8)),
        IMAGE,
    ),
    "without-affine": (seq(lambda: nn.Conv2d(6, 4, 3), lambda: nn.BatchNorm2d(4, affine=False)), IMAGE),
    "twice": (
        seq(lambda: nn.Conv2d(6, 4, 3), lambda: nn.BatchNorm2d(4), lambda: nn.BatchNorm2d(4, affine=False)),
        IMAGE,
    ),
    "dropout-between": (seq(lambda: nn.Linear(6, 4), nn.Dropout, lambda: nn.BatchNorm1d(4)), ROW),
    "tokens": (
        lambda: Flow(
            lambda m, x: m.norm(m.a(x.transpose(1, 2)).transpose(1, 2)), a=nn.Linear(6, 4), norm=nn.BatchNorm1d(4)
        ),
        LINE,
    ),
    "scaled": (
        lambda: Flow(
            lambda m, x: m.norm(m.a(x)) * m.gamma, a=nn.Linear(6, 4), norm=nn.BatchNorm1d(4), gamma=_parameter(4)
        ),
        ROW,
    ),
}

BEFORE: dict[str, tuple[Build, str]] = {
    "linear": (seq(lambda: nn.BatchNorm1d(6), lambda: nn.Linear(6, 4)), ROW),
    "linear-no-bias": (seq(lambda: nn.BatchNorm1d(6), lambda: nn.Linear(6, 4, bias=False)), ROW),
    "conv": (seq(lambda: nn.BatchNorm2d(6), lambda: nn.Conv2d(6, 4, 3, stride=2)), IMAGE),
    "conv-valid": (seq(lambda: nn.BatchNorm2d(6), lambda: nn.Conv2d(6, 4, 3, padding="valid")), IMAGE),
    "two-layers": (
        lambda: Flow(
            lambda m, x: m.a(y := m.norm(x)) + m.b(y), a=nn.Linear(6, 4), b=nn.Linear(6, 4), norm=nn.BatchNorm1d(6)
        ),
        ROW,
    ),
}


def _parameter(size: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(size) + 0.5)


def assert_all_folded(counted: Counter[str], n_members: int = 3) -> None:
    assert not [name for name in counted if "batch_norm" in name]
    assert counted["mul.Tensor"] == 0 or n_members == 1  # scales of one member are left to the runtime


@pytest.mark.parametrize("n_members", [1, 3])
@pytest.mark.parametrize("name", BEHIND)
def test_norm_behind_a_layer_costs_nothing(name: str, n_members: int, tmp_path: Path) -> None:
    build, spec = BEHIND[name]
    assert_all_folded(ops(trained(build, n_members), spec, folder=tmp_path if n_members == 3 else None), n_members)


@pytest.mark.parametrize("n_members", [1, 3])
@pytest.mark.parametrize("name", BEFORE)
def test_norm_before_a_layer_costs_nothing(name: str, n_members: int, tmp_path: Path) -> None:
    build, spec = BEFORE[name]
    assert_all_folded(ops(trained(build, n_members), spec, folder=tmp_path if n_members == 3 else None), n_members)


@pytest.mark.parametrize("name", ["linear", "conv2d", "transposed-groups"])
def test_per_member_input(name: str) -> None:
    build, spec = BEHIND[name]
    assert_all_folded(ops(trained(build), spec, per_member=("x",)))


KEPT: dict[str, tuple[Build, str]] = {
    "read-elsewhere": (
        lambda: Flow(lambda m, x: m.norm(y := m.a(x)) + y, a=nn.Linear(6, 4), norm=nn.BatchNorm1d(4)),
        ROW,
    ),
    "layer-used-twice": (
        lambda: Flow(lambda m, x: m.norm(m.a(x)) + m.a(x.sin()), a=nn.Linear(6, 4), norm=nn.BatchNorm1d(4)),
        ROW,
    ),
    "activation-between": (seq(lambda: nn.Conv2d(6, 4, 3), nn.ReLU, lambda: nn.BatchNorm2d(4)), IMAGE),
    "padded-behind": (seq(lambda: nn.BatchNorm2d(6), lambda: nn.Conv2d(6, 4, 3, padding=1)), IMAGE),
    "same-behind": (seq(lambda: nn.BatchNorm2d(6), lambda: nn.Conv2d(6, 4, 3, padding="same")), IMAGE),
    "transposed-behind": (seq(lambda: nn.BatchNorm2d(6), lambda: nn.ConvTranspose2d(6, 4, 2, 2)), IMAGE),
    "other-dim": (seq(lambda: nn.Linear(7, 4), lambda: nn.BatchNorm1d(6)), LINE),
    "no-eps": (seq(lambda: nn.Linear(6, 4), lambda: nn.BatchNorm1d(4, eps=0.0)), ROW),
    "statistics-of-the-batch": (
        seq(lambda: nn.Conv2d(6, 4, 3), lambda: nn.BatchNorm2d(4, track_running_stats=False)),
        IMAGE,
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_norm_stays_where_it_is_no_scale_of_one_layer(name: str) -> None:
    build, spec = KEPT[name]
    assert ops(trained(build), spec)["batch_norm.default"] == 1


def test_residual_block_of_functional_norms() -> None:
    """Writing to a slice in place makes torch split each norm into its functional form with several results."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.norm(m.a(x)).clone()
        y[:, 0] += 1.0
        return y

    members = trained(lambda: Flow(forward, a=nn.Conv2d(6, 4, 3), norm=nn.BatchNorm2d(4)))
    member, _ = capture(members[0], IMAGE)
    assert any(
        node.target is torch.ops.aten._native_batch_norm_legit_no_training.default for node in member.graph.nodes
    )
    assert_all_folded(ops(members, IMAGE))


def _shared(members: list[nn.Module], *parts: str) -> set[str]:
    for member in members[1:]:
        for part in parts:
            member.get_submodule(part).load_state_dict(members[0].get_submodule(part).state_dict())
    return {name for name in members[0].state_dict() if name.split(".")[0] in parts}


def test_shared_layer_takes_a_shared_norm_only() -> None:
    build = BEHIND["conv2d"][0]
    members = trained(build)
    assert ops(members, IMAGE, shared_state=_shared(members, "0"))["batch_norm.default"] == 1
    members = trained(build)
    shared = _shared(members, "0", "1")
    assert_all_folded(ops(members, IMAGE, shared_state=shared))
    graph, _ = batched(members, IMAGE, shared_state=shared)
    assert {weight.kind for weight in graph.packed.values()} == {"shared"}


def test_shared_norm_moves_into_a_layer_of_each_member() -> None:
    members = trained(BEHIND["conv2d"][0])
    assert_all_folded(ops(members, IMAGE, shared_state=_shared(members, "1")))


def test_weights_are_computed_in_float64_and_rounded_once() -> None:
    members = trained(BEHIND["conv2d-groups"][0], 2)
    graph, weights = batched(members, IMAGE)
    exact_weights, exact_biases = [], []
    with torch.no_grad():
        for conv, norm in members:
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            exact_weights.append((conv.weight.double() * scale.view(-1, 1, 1, 1)).float())
            shift = norm.bias.double() - norm.running_mean.double() * scale
            exact_biases.append((conv.bias.double() * scale + shift).float())
    by_rank = {weights[weight.name].dim(): weights[weight.name] for weight in graph.packed.values()}
    torch.testing.assert_close(by_rank[4], torch.cat(exact_weights), rtol=1.2e-7, atol=0)
    torch.testing.assert_close(by_rank[1], torch.cat(exact_biases), rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("name", ["linear", "conv2d"])
@pytest.mark.parametrize("value", [float("nan"), -1.0, float("inf")], ids=["nan", "negative", "infinite"])
def test_bad_statistics_are_as_bad_as_in_the_loop(name: str, value: float) -> None:
    build, spec = BEHIND[name]
    members = trained(build)
    members[1][1].running_var[2] = value
    members[2][1].running_mean[0] = float("nan")
    graph, weights = batched(members, spec)
    x = torch.randn(2, *(6, 5, 5)[: 3 if name == "conv2d" else 1])
    with torch.no_grad():
        (result,) = fx_run(graph, weights)([x])
        expected = torch.stack([member(x) for member in members])
    assert expected.isnan().any()
    torch.testing.assert_close(result, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
