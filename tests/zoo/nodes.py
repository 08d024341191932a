"""Count the nodes of packed graphs against one member's own export, and write `docs/nodes.md`.

    python -m tests.zoo.nodes [--only NAME,...]

Nodes are counted after ONNX Runtime's basic optimisation, where what folds away by itself is gone on both sides.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime as ort
import torch
from torch import nn

from ensexport.batching.engine import batch_graph
from ensexport.batching.examples import find_example
from ensexport.batching.member_graph import capture_member
from ensexport.members import resolve_architecture
from ensexport.spec import parse_inputs
from ensexport.stacking.state import named_tensors
from ensexport.targets.onnx import member_onnx_model, onnx_model, write_onnx
from tests.zoo.optimised import HEADING
from tests.zoo.stubs import declare_if_needed

PAGE = Path(__file__).parents[2] / "docs" / "nodes.md"
N_MEMBERS = 3
_BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
}
_IMAGE = ("x:float32[batch,3,224,224]",)
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "MLP 64-128-128-10": ("mlp", ("x:float32[batch,64]",)),
    "ResNet-18": ("timm:resnet18", _IMAGE),
    "ResNet-50": ("timm:resnet50", _IMAGE),
    "ConvNeXt-tiny": ("timm:convnext_tiny", _IMAGE),
    "ConvNeXt-atto": ("timm:convnext_atto", _IMAGE),
    "ViT-tiny": ("timm:vit_tiny_patch16_224", _IMAGE),
    "BERT, 4 layers": ("hf:.", ("input_ids:int64[batch,seq]", "attention_mask:int64[batch,seq]")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models, comma-separated")
    only = {name.strip() for name in parser.parse_args().only.split(",") if name.strip()}
    warnings.simplefilter("ignore")
    library = declare_if_needed()
    lines = []
    for name, (source, inputs) in MODELS.items():
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            single, packed = counts(_builder(source, Path(folder)), inputs, Path(folder))
        more = {op: (single[op], packed[op]) for op in sorted({*single, *packed}) if single[op] != packed[op]}
        told = ", ".join(f"{op} {before} → {after}" for op, (before, after) in more.items())
        ratio = packed.total() / single.total()
        lines.append(f"| {name} | {single.total()} | {packed.total()} | {ratio:.2f} | {told or '-'} |")
        print(lines[-1], flush=True)
    del library
    if not only:
        before = PAGE.read_text() if PAGE.exists() else ""
        PAGE.write_text(_page(lines) + "".join(before.partition(f"\n{HEADING}")[1:]))


def counts(build: Callable[[], nn.Module], inputs: tuple[str, ...], folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Node counts by op: one member's own export, and N members packed."""
    members = []
    for seed in range(N_MEMBERS):
        torch.manual_seed(seed)
        members.append(build().eval())
        with torch.no_grad():
            for parameter in members[-1].parameters():  # no two members share a tensor
                parameter.add_(torch.rand_like(parameter) * 0.1)
    specs = parse_inputs(inputs)
    example = find_example(members[0], specs)
    states = [named_tensors(member) for member in members]
    shared = {name for name in states[0] if all(torch.equal(states[0][name], state[name]) for state in states)}
    graph = batch_graph(capture_member(members[0], specs, example), N_MEMBERS, shared_state=shared)
    names = list(example.outputs)
    write_onnx(onnx_model(graph, names), folder / "packed.onnx", graph.weights.pack(states, N_MEMBERS), {})
    model, state_of = member_onnx_model(capture_member(members[0], specs, example), names)
    weights = {name: states[0][state] for name, state in state_of.items() if state in states[0]}
    write_onnx(model, folder / "member.onnx", weights, {})
    return _after_basic(folder / "member.onnx"), _after_basic(folder / "packed.onnx")


def _after_basic(path: Path) -> Counter[str]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def _builder(source: str, folder: Path) -> Callable[[], nn.Module]:
    if source == "mlp":
        return lambda: nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    (folder / "config.json").write_text(json.dumps(_BERT))
    return resolve_architecture(source, {}, folder).build


def _page(lines: list[str]) -> str:
    return "\n".join(
        [
            "# Nodes of a packed graph",
            "",
            f"{N_MEMBERS} members with random weights against one member's own export at the same opset, counted after",
            "ONNX Runtime's basic optimisation. Made by `python -m tests.zoo.nodes`, "
            f"{datetime.date.today().isoformat()}, torch {torch.__version__}, ONNX Runtime {ort.__version__}.",
            "",
            "One member's export is written with the same ONNX forms of attention, convolutions and pools as the",
            "packed graph. A stacked linear layer is `MatMul` and `Add` where one member has a `Gemm`. A norm over",
            "the channels of images splits them from the members and merges them again: two `Reshape`, no copies.",
            "ConvNeXt-tiny gets its linear layers as 1x1 convolutions; ConvNeXt-atto has them as convolutions already,",
            "so that those two `Reshape` a block stay, over 8 nodes: ONNX has no norm over another dim than the last.",
            "",
            "| model | one member | packed | ratio | ops that differ |",
            "| --- | --- | --- | --- | --- |",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    main()
