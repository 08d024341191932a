"""What the rules of each target choose, and the table they read."""

import itertools
import json
from importlib import resources

import pytest
import torch
from torch import nn

from ensexport.batching.costs import Cost, Layer, Measured, estimate, read_table
from ensexport.batching.member_graph import MemberGraph
from ensexport.batching.placement import Site, cheapest, differing_nodes, layer_of, stages_of
from ensexport.batching.rule_sets import TARGETS, hybrids, rule_set
from ensexport.errors import UsageError
from tests.batching.runs import capture


def site_of(module: nn.Module, *inputs: str, per_member: tuple[str, ...] = (), n_members: int = 5) -> Site:
    member: MemberGraph = capture(module.eval(), *inputs)[0]
    return Site(member, n_members, differing_nodes(member, lambda name: False, per_member))


def convs(*channels: int, size: int) -> Site:
    pairs = itertools.pairwise(channels)
    return site_of(
        nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)),
        f"x:float32[batch,{channels[0]},{size},{size}]",
    )


def test_a_layer_is_known_by_its_sizes() -> None:
    site = convs(3, 16, 32, size=8)
    stem, conv = site.heavy
    assert layer_of(site, stem, 4) is None  # one wide convolution on the shared image
    assert layer_of(site, conv, 4) == Layer("conv", 16, 32, 64, 4, 2.0 * 4 * 64 * 16 * 32 * 9)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Conv2d(16, 24, 1), "pointwise"),
        (nn.Conv2d(16, 16, 3, groups=16), "depthwise"),
        (nn.Conv2d(12, 16, 3), "conv-odd"),
        (nn.ConvTranspose2d(16, 8, 2, 2), "conv"),
    ],
)
def test_the_kind_of_a_convolution(module: nn.Module, kind: str) -> None:
    site = site_of(module, f"x:float32[batch,{module.in_channels},8,8]", per_member=("x",))
    layer = layer_of(site, site.heavy[0], 1)
    assert layer is not None
    assert layer.kind == kind
    pixels = 64 if isinstance(module, nn.ConvTranspose2d) or kind == "pointwise" else 36
    assert layer.flops == 2 * pixels * module.weight.numel()


def test_linear_layers_know_whether_members_share_their_input() -> None:
    site = site_of(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), "x:float32[batch,7,6]")
    first, second = (layer_of(site, node, 2) for node in site.heavy)
    assert first == Layer("wide", 6, 8, 7, 2, 2.0 * 14 * 48)
    assert second == Layer("linear", 8, 4, 7, 2, 2.0 * 14 * 32)


def test_a_layer_that_all_members_share_is_not_placed() -> None:
    member, _ = capture(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)).eval(), "x:float32[batch,6]")
    site = Site(member, 5, differing_nodes(member, lambda name: name.startswith("0"), ()))
    assert len(site.heavy) == 1


def test_costs_come_from_the_nearest_rows() -> None:
    small, large = (Layer("conv", c, c, 64, 1, 2.0 * 64 * 9 * c * c) for c in (16, 256))
    table = (Measured(small, 0.5, 10.0, 5), Measured(large, 2.0, 4000.0, 5))
    near_small, near_large = (Layer("conv", c, c, 64, 1, 2.0 * 64 * 9 * c * c) for c in (20, 200))
    ratios = [cost.batched_s / cost.apart_s for cost in (estimate(x, 5, table) for x in (near_small, near_large))]
    assert ratios[0] < 0.7
    assert ratios[1] > 1.5
    doubled = estimate(small, 10, table)
    assert doubled is not None
    assert doubled.apart_s == pytest.approx(20e-6)
    assert estimate(Layer("linear", 8, 8, 1, 1, 128.0), 5, table) is None


def test_the_cheapest_sequence_counts_the_switches() -> None:
    site = convs(16, 16, 16, 16, size=8)
    dear, cheap = Cost(2e-3, 1e-3), Cost(0.9e-3, 1e-3)
    costs = dict(zip(site.heavy, ([dear], [cheap], [dear]), strict=True))
    assert cheapest(costs, site, [1], 1.0) == frozenset({site.heavy[0], site.heavy[2]})
    # The gain in the middle is smaller than two copies of the activation.
    costs[site.heavy[1]] = [Cost(0.999e-3, 1e-3)]
    assert cheapest(costs, site, [1], 1.0) == frozenset(site.heavy)
    assert cheapest({}, site, [1], 1.0) == frozenset()


def test_small_layers_are_batched_and_large_ones_run_once_a_member_on_a_cpu() -> None:
    place = rule_set("cpu").placement((1, 8))
    small = convs(16, 16, 16, size=8)
    assert place(small) == frozenset()
    large = convs(512, 512, 512, size=2)  # all members' filters are larger than a cache, and are read for every image
    assert place(large) == frozenset(large.heavy[1:]) or place(large) == frozenset(large.heavy)


def test_a_gpu_batches_what_leaves_it_unfilled() -> None:
    place = rule_set("cuda").placement((1,))
    assert place(convs(64, 64, 64, size=16)) == frozenset()
    assert place(site_of(nn.Sequential(nn.Linear(768, 768), nn.Linear(768, 768)), "x:float32[batch,197,768]")) == set()
    assert len(place(convs(64, 64, 64, size=224))) > 0  # 50,000 pixels of one member fill it


def test_every_target_has_its_rules() -> None:
    assert TARGETS == ("portable", "cpu", "cuda", "tensorrt")
    assert [rule_set(target).provider for target in TARGETS] == ["cpu", "cpu", "cuda", "tensorrt"]
    with pytest.raises(UsageError, match="unknown target 'gpu': expected one of 'portable', 'cpu', 'cuda', 'tensorrt'"):
        rule_set("gpu")


def test_hybrids_split_the_work() -> None:
    site = convs(16, 16, 16, 16, 16, size=8)
    placed = {name: place(site) for name, place in hybrids().items()}
    assert placed["early apart"] | placed["late apart"] == frozenset(site.heavy)
    assert not placed["early apart"] & placed["late apart"]
    assert placed["linears apart"] == frozenset()


def test_the_plan_names_the_first_layer_of_a_stage() -> None:
    site = convs(16, 16, 16, 16, size=8)
    stages = stages_of(site.heavy, {site.heavy[2]})
    assert [(stage.form, stage.layers) for stage in stages] == [("batched", 2), ("apart", 1)]
    assert stages[1].first.startswith("aten.conv2d.default")


def test_the_table_of_the_cpu_is_what_the_calibration_writes() -> None:
    table = read_table("cpu")
    assert {row.layer.kind for row in table} >= {"conv", "pointwise", "depthwise", "linear", "wide", "conv-odd"}
    assert all(0.1 < row.ratio < 10 and row.apart_us > 0 for row in table)
    text = (resources.files("ensexport.batching") / "tables" / "cpu.json").read_text()
    assert json.loads(text)["environment"]["provider"] == "cpu"
    assert read_table("no such") == ()


def test_half_precision_is_measured_on_the_same_shapes() -> None:
    site = site_of(nn.Linear(8, 8).to(torch.bfloat16), "x:bfloat16[batch,8]", per_member=("x",))
    assert layer_of(site, site.heavy[0], 1) == Layer("linear", 8, 8, 1, 1, 128.0)
