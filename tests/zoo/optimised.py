"""List the nodes that ONNX Runtime runs for packed graphs, and write them into `docs/nodes.md`.

    python -m tests.zoo.optimised [NAME ...] [--target TARGET]

With names it prints every node; without, it writes the section.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime as ort
import torch
from torch import nn

from ensexport.batching.engine import batch_graph
from ensexport.batching.examples import find_example
from ensexport.batching.member_graph import capture_member
from ensexport.batching.placement import Placement
from ensexport.batching.rule_sets import TARGETS, rule_set
from ensexport.bench.optimised import OptimisedNode, optimised_nodes
from ensexport.spec import parse_inputs
from ensexport.stacking.state import named_tensors
from ensexport.targets.onnx import onnx_model, write_onnx

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "nodes.md"
HEADING = "## What ONNX Runtime runs"
_IMAGE = "x:float32[batch,3,224,224]"
NETWORKS = {
    "resnet18": ("ResNet-18", 5, _IMAGE),
    "vit_tiny": ("ViT-tiny", 5, _IMAGE),
    "mlp": ("The tutorial's MLP", 10, "x:float32[batch,1,28,28]"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument("--target", choices=TARGETS, help="place the layers as `--target` does; default: all batched")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.names:
        for name in options.names:
            print(*_network(name, options.target), sep="\n")
        return
    page = PAGE.read_text().partition(HEADING)[0].rstrip("\n") + "\n\n"
    PAGE.write_text(page + _section())


def pack(
    build: Callable[[], nn.Module],
    inputs: Sequence[str],
    n_members: int,
    path: Path,
    *,
    placement: Placement | None = None,
    per_member: Sequence[str] = (),
    opset: int | None = None,
) -> Path:
    """Write the packed graph of members with random weights, running statistics included."""
    members = []
    for seed in range(n_members):
        torch.manual_seed(seed)
        members.append(build().eval())
        with torch.no_grad():
            for name, tensor in named_tensors(members[-1]).items():
                if tensor.is_floating_point() and "num_batches" not in name:
                    tensor.add_(torch.rand_like(tensor) * 0.1)
    specs = parse_inputs(inputs)
    example = find_example(members[0], specs)
    member = capture_member(members[0], specs, example)
    graph = batch_graph(member, n_members, placement=placement, per_member=per_member)
    weights = graph.weights.pack([named_tensors(module) for module in members], n_members)
    write_onnx(onnx_model(graph, list(example.outputs), opset=opset), path, weights, {})
    return path


def network(name: str) -> Callable[..., nn.Module]:
    """A network of the standard set, `samples/benchmarks/models.py`."""
    spec = importlib.util.spec_from_file_location("models", ROOT / "samples" / "benchmarks" / "models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)  # type: ignore[no-any-return]


def _network(name: str, target: str | None) -> list[OptimisedNode]:
    _, n_members, inputs = NETWORKS[name]
    placement = None if target is None else rule_set(target).placement()
    with tempfile.TemporaryDirectory() as folder:
        return optimised_nodes(pack(network(name), (inputs,), n_members, Path(folder) / "p.onnx", placement=placement))


def summarised(lines: Sequence[str]) -> list[str]:
    """Consecutive equal runs of lines once, with how often they stand there: the longest saving first."""
    done: list[str] = []
    start = 0
    while start < len(lines):
        best = (1, 1)  # length of the run, how often
        for length in range(1, (len(lines) - start) // 2 + 1):
            run = lines[start : start + length]
            times = 1
            while lines[start + times * length : start + (times + 1) * length] == run:
                times += 1
            if times > 1 and length * (times - 1) > best[0] * (best[1] - 1):
                best = (length, times)
        length, times = best
        run = list(lines[start : start + length])
        if times == 1:
            done += run
        elif length == 1:
            done.append(f"{times} x {run[0]}")
        else:
            done += [f"{times} x", *(f"    {line}" for line in summarised(run))]
        start += length * times
    return done


def _text(node: OptimisedNode) -> str:
    """A node without the input's size, so that equal blocks are equal lines."""
    return re.sub(r" ->.*", "", str(node))


def _section() -> str:
    parts = [
        HEADING,
        "",
        "The whole graph after all of ONNX Runtime's optimisations, for its CPU provider: fused ops, blocked layouts",
        "(`nchwc:`), weights with their packed shape. Made by `python -m tests.zoo.optimised`, "
        f"{datetime.date.today().isoformat()},",
        f"torch {torch.__version__}, ONNX Runtime {ort.__version__}; `python -m tests.zoo.optimised NAME` prints every",
        "node with its shape, and `tests/targets/test_optimised_nodes.py` keeps what is said here.",
        "",
        "- Every convolution is blocked, with its BatchNorm, its `Relu` and the residual sum inside; no `Transpose`",
        "  and no reordering stands between two of them. The stem reads the image as it is.",
        "- A shared input is read by one wide convolution or one wide `FusedGemm`; the members get a dim of their own",
        "  by a `Reshape`, and the next layer reads that as it lies (`transBatchA`).",
        "- A ViT's block has the four transposes of attention, as one member has: heads in front of tokens for query,",
        "  key and value, and back for the result. One more turns patches into tokens. The scale of the scores is in",
        "  their product (`alpha`); norms, `Gelu` and `Softmax` are whole.",
        "",
    ]
    for name, (title, n_members, _) in NETWORKS.items():
        stacked = list(map(_text, _network(name, None)))
        placed = list(map(_text, _network(name, "cpu")))
        print(name, len(stacked), len(placed), file=sys.stderr, flush=True)
        parts += [f"### {title}, {n_members} members: {len(stacked)} nodes", "", "```text", *summarised(stacked), "```"]
        if placed == stacked:
            parts += ["", "`--target cpu` places its layers the same way.", ""]
            continue
        parts += ["", f"With `--target cpu` {len(placed)} nodes:", "", "```text", *summarised(placed), "```", ""]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
