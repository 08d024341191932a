"""Running one row of the table through the engine and comparing with the loop over its members."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime as ort
import torch
from torch import Tensor, fx, nn

from ensexport.batching.engine import BatchedGraph, batch_graph
from ensexport.batching.examples import Example, find_example, random_feed
from ensexport.batching.member_graph import MemberGraph, capture_member
from ensexport.spec import parse_inputs
from ensexport.stacking.baseline import run_member
from ensexport.stacking.state import named_tensors
from ensexport.targets.onnx import onnx_model, write_onnx
from ensexport.targets.torchscript import torchscript_bytes

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def capture(module: nn.Module, *inputs: str) -> tuple[MemberGraph, Example]:
    specs = parse_inputs(inputs)
    example = find_example(module, specs)
    return capture_member(module, specs, example), example


def batched(members: Sequence[nn.Module], *inputs: str, **options: object) -> tuple[BatchedGraph, dict[str, Tensor]]:
    """The batched graph of some modules and its packed weights."""
    member, _ = capture(members[0], *inputs)
    graph = batch_graph(member, len(members), **options)  # type: ignore[arg-type]
    return graph, graph.weights.pack([named_tensors(module) for module in members], len(members))


def fx_run(graph: BatchedGraph, weights: dict[str, Tensor]) -> Run:
    module = fx.GraphModule(nn.Module(), graph.graph)
    return lambda tensors: module(*(weights[weight.name] for weight in graph.packed.values()), *tensors)


def torchscript_run(graph: BatchedGraph, weights: dict[str, Tensor]) -> Run:
    data = torchscript_bytes(graph, weights, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(io.BytesIO(data))

    def run(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        result = module(*tensors)
        return result if isinstance(result, tuple) else (result,)

    return run


def onnx_run(graph: BatchedGraph, weights: dict[str, Tensor], folder: Path) -> Run:
    names = [f"y{index}" for index in range(len(graph.outputs))]
    path = folder / "graph.onnx"
    write_onnx(onnx_model(graph, names), path, weights, {})
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = [value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())]

    def run(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        feed = {name: tensor.numpy() for name, tensor in zip(inputs, tensors, strict=False)}
        return [torch.from_numpy(array) for array in session.run(None, feed)]

    return run


def ops(members: Sequence[nn.Module], spec: str, *, folder: Path | None = None, **options: object) -> Counter[str]:
    """The batched graph's ops by name, after a comparison with the loop; in ONNX and TorchScript too with a folder."""
    graph, weights = batched(members, spec, **options)
    _, example = capture(members[0], spec)
    runs = [fx_run(graph, weights)]
    if folder is not None:
        runs += [onnx_run(graph, weights, folder), torchscript_run(graph, weights)]
    assert_equals_loop(runs, members, graph, example)
    assert not graph.plan.fallbacks
    return Counter(n.target.__name__ for n in graph.graph.nodes if n.op == "call_function")


def assert_equals_loop(
    runs: Sequence[Run],
    members: Sequence[nn.Module],
    graph: BatchedGraph,
    example: Example,
    *,
    batches: Sequence[int] = (1, 2, 3, 7),
    fixed: Sequence[str] = (),
) -> None:
    """Compare at several batch sizes; the other dynamic dims move too, but those in `fixed`."""
    for batch in batches:
        sizes = {name: size + (batch % 2 if name not in fixed else 0) for name, size in example.sizes.items()}
        sizes |= {"batch": batch} if "batch" in sizes else {}
        feeds = [random_feed(graph.member.specs, sizes, seed) for seed in range(len(members))]
        own = [
            {name: feeds[k if name in graph.per_member else 0][name] for name in feeds[0]} for k in range(len(members))
        ]
        tensors = [
            torch.stack([feed[name] for feed in own]) if name in graph.per_member else feeds[0][name]
            for name in feeds[0]
        ]
        expected = [run_member(module, feed) for module, feed in zip(members, own, strict=True)]
        for run in runs:
            with torch.no_grad():
                results = run(tensors)
            for name, result in zip(example.outputs, results, strict=True):
                reference = torch.stack([outputs[name] for outputs in expected])
                assert result.dtype == reference.dtype, name
                assert result.shape == reference.shape, name
                scale = reference.abs().max().item() if reference.numel() and reference.is_floating_point() else 1.0
                torch.testing.assert_close(result, reference, atol=2e-5 * max(scale, 1.0), rtol=1e-4)
