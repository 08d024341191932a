"""What ONNX Runtime's CPU provider makes of packed graphs: the fast form of every layer, no copies between layouts.

`docs/nodes.md` lists the same for whole networks.
"""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from ensexport.batching.rule_sets import rule_set
from ensexport.bench.optimised import OptimisedNode, optimised_nodes
from tests.targets.test_node_counts import convnext
from tests.zoo.optimised import network, pack

PLACEMENTS = [None, "cpu", "cuda"]
N_MEMBERS = 5


def resnet() -> nn.Module:
    """ResNet-18's stem, a block of 64, a block to 128 channels, and its head."""
    models = network("resnet18").__globals__
    conv, residual = models["_conv"], models["_Residual"]
    blocks = [residual(64, 64, 1, bottleneck=False), residual(64, 128, 2, bottleneck=False)]
    stem = [conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def vit() -> nn.Module:
    return network("ViT")(48, 3, 2)


def bert() -> nn.Module:
    return network("Bert")(32, 2, 1, 50)


class UNet(nn.Module):
    """Two levels, group norm on the way down and instance norm on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU())
        self.bottom = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 16, 2, 2)
        self.join = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1), nn.InstanceNorm2d(16, affine=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(x)
        return self.join(torch.cat([self.up(self.bottom(x)), x], 1))


IMAGE, LARGE = "x:float32[batch,3,32,32]", "x:float32[batch,3,224,224]"
NETWORKS = {
    "resnet": (resnet, "x:float32[batch,3,64,64]"),
    "vit": (vit, LARGE),
    "mlp": (network("mlp"), "x:float32[batch,1,28,28]"),
    "bert": (bert, "ids:int64[batch,128]"),
    "convnext": (convnext, IMAGE),
    "unet": (UNet, IMAGE),
}


@functools.cache
def nodes_of(name: str, target: str | None = None, n_members: int = N_MEMBERS) -> list[OptimisedNode]:
    build, inputs = NETWORKS[name]
    placement = None if target is None else rule_set(target).placement()
    with tempfile.TemporaryDirectory() as folder:
        return optimised_nodes(pack(build, (inputs,), n_members, Path(folder) / "p.onnx", placement=placement))


@functools.cache
def block_size() -> int:
    """Channels in a block on this processor: what ONNX Runtime pads a filter of one output channel to."""
    with tempfile.TemporaryDirectory() as folder:
        path = pack(lambda: nn.Conv2d(3, 1, 3), (IMAGE,), 1, Path(folder) / "p.onnx")
        conv = next(node for node in optimised_nodes(path) if node.op_type == "Conv")
    if not conv.is_blocked:
        pytest.skip("this processor has no blocked convolutions")
    return conv.weights[0][0]


def readers_of(nodes: list[OptimisedNode], name: str) -> list[OptimisedNode]:
    return [node for node in nodes if name in node.inputs]


@pytest.mark.parametrize("target", PLACEMENTS)
def test_convolutions_are_blocked_and_nothing_stands_between_them(target: str | None) -> None:
    assert not 64 % block_size()
    nodes = nodes_of("resnet", target)
    convs = [place for place, node in enumerate(nodes) if node.op_type == "Conv"]
    assert all(nodes[place].is_blocked for place in convs)
    # BatchNorm, Relu and the residual sums are inside; what may stand between is blocked too, or joins members.
    assert {node.op_type for node in nodes[: convs[-1] + 1]} <= {"Conv", "MaxPool", "Concat"}
    counts = Counter(node.op_type for node in nodes)
    assert (counts["ReorderInput"], counts["ReorderOutput"], counts["Transpose"]) == (0, 1, 0)
    sums = [node for node in nodes if node.op_type == "Conv" and len(node.inputs) > 3 and node.inputs[3]]
    assert len(sums) >= 2
    assert all(node.attributes["activation"] == "Relu" for node in sums)


@pytest.mark.parametrize("target", [None, "cuda"])
@pytest.mark.parametrize(
    ("name", "op_types"), [("resnet", {"Conv"}), ("mlp", {"Gemm", "FusedGemm"}), ("vit", {"Conv"})]
)
def test_a_shared_input_is_read_by_one_wide_layer(name: str, op_types: set[str], target: str | None) -> None:
    nodes = nodes_of(name, target)
    readers = readers_of(nodes, "x")
    if [node.op_type for node in readers] == ["Reshape"]:  # the MLP's own `Flatten`
        readers = readers_of(nodes, readers[0].outputs[0])
    (reader,) = [node for node in readers if node.op_type != "Shape"]
    assert reader.op_type in op_types
    width = {"resnet": 64, "mlp": 128, "vit": 48}[name]
    assert N_MEMBERS * width in reader.weights[0]
    assert "group" not in reader.attributes


@pytest.mark.parametrize("target", PLACEMENTS)
def test_an_mlp_reads_the_wide_layer_as_it_lies(target: str | None) -> None:
    nodes = nodes_of("mlp", target)
    assert not [node for node in nodes if node.op_type == "Transpose"]
    products = [node for node in nodes if node.op_type in ("MatMul", "FusedMatMul")]
    assert [node.attributes.get("transBatchA") for node in products] == [1, None]


@pytest.mark.parametrize("target", [None, "cuda"])
def test_a_vit_transposes_for_attention_only(target: str | None) -> None:
    counts = Counter(node.op_type for node in nodes_of("vit", target))
    # A block: heads before tokens for query, key and value, and back for the result. One for the patches.
    assert counts["Transpose"] == 4 * 2 + 1
    # Per block two norms, and the last one; the one behind the last sum takes the sum in.
    assert counts["LayerNormalization"] + counts["SkipLayerNormalization"] == 5
    assert counts["Gelu"] + counts["BiasGelu"] + counts["FastGelu"] == 2
    assert (counts["Softmax"], counts["Mul"], counts["Cast"], counts["CastLike"]) == (2, 0, 0, 0)


def test_a_vit_has_no_more_transposes_where_its_layers_run_apart() -> None:
    nodes = nodes_of("vit", "cpu")
    counts = Counter(node.op_type for node in nodes)
    assert counts["Transpose"] <= (4 * 2 + 1) * N_MEMBERS
    assert counts["Erf"] + counts["ReduceMean"] == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_slow_forms_are_never_written(name: str) -> None:
    build, inputs = NETWORKS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = pack(build, (inputs,), 3, Path(folder) / "p.onnx")
        model = onnx.shape_inference.infer_shapes(onnx.load(path))
        optimised = optimised_nodes(path)
    counts = Counter(node.op_type for node in model.graph.node)
    slow = {"Einsum", "Erf", "ReduceSum", "Exp", "SplitToSequence", "SequenceAt", "CastLike", "Tile"}
    assert not slow & counts.keys()
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    ranks |= {weight.name: len(weight.dims) for weight in model.graph.initializer}
    weights = {weight.name for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMul" and all(name in ranks for name in node.input):
            assert ranks[node.input[0]] >= ranks[node.input[1]], f"{node.name} repeats its first factor for each member"
        if node.op_type == "Expand":
            assert node.input[0] in weights, f"{node.name} repeats an activation"
    assert not {"SplitToSequence", "Einsum", "Cast", "CastLike"} & {node.op_type for node in optimised}


def test_group_norm_is_an_instance_norm_at_every_opset(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.Conv2d(16, 8, 3))

    for opset in (20, 21):
        nodes = optimised_nodes(pack(build, (IMAGE,), 3, tmp_path / "p.onnx", opset=opset))
        between = [node.op_type for node in nodes[1 : [node.op_type for node in nodes].index("Conv", 1)]]
        norm = ["Reshape", "InstanceNormalization", "Reshape", "Mul", "Add"]
        assert [op_type for op_type in between if not op_type.startswith("Reorder")] == norm
        (instance,) = [node for node in nodes if node.op_type == "InstanceNormalization"]
        assert instance.weights == ((3 * 4,), (3 * 4,))


def test_ids_look_up_all_tables_in_one_gather() -> None:
    (lookup,) = readers_of(nodes_of("bert"), "ids")
    assert (lookup.op_type, lookup.weights) == ("Gather", ((N_MEMBERS, 50, 32),))


@pytest.mark.parametrize("name", ["resnet", "mlp", "vit", "bert"])
def test_one_member_is_the_plain_model(name: str) -> None:
    nodes = nodes_of(name, None, 1)
    assert nodes[-1].op_type == "Unsqueeze"
    assert not [node for node in nodes if node.attributes.get("group", 1) != 1]
    assert all(len(shape) <= 2 for node in nodes if "MatMul" in node.op_type for shape in node.weights)
    assert all(node.shape is None or len(node.shape) < 2 or node.shape[0] != 1 for node in nodes[:-1])


def test_layers_apart_split_their_input_once(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))

    path = pack(build, (IMAGE,), 3, tmp_path / "p.onnx", placement=lambda site: frozenset(site.heavy[1:]))
    assert [node.op_type for node in onnx.load(path).graph.node].count("Split") == 1
    assert "SequenceAt" not in {node.op_type for node in optimised_nodes(path)}
