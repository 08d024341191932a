"""Batched graph -> ONNX, through the exported program and torch's ONNX exporter, weights put in last.

`torch.onnx.export` is never given a module: with a dynamic batch that reports success and writes a fixed one.
It gets the program with fake weights, so its time and memory do not depend on the ensemble's size; the real bytes
go straight into the file, see `onnx_file`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import fx
from torch.export import ExportedProgram

from ensexport.batching.engine import BatchedGraph
from ensexport.batching.member_graph import MemberGraph
from ensexport.batching.recurrent import use_stand_ins
from ensexport.batching.source import source_line
from ensexport.errors import ExportError, FrozenDimError, OpsetError
from ensexport.spec import TensorSpec
from ensexport.targets import (
    onnx_attention,
    onnx_bfloat16,
    onnx_gaps,
    onnx_linalg,
    onnx_norms,
    onnx_passes,
    onnx_pointwise,
    onnx_recurrent,
    onnx_resize,
    onnx_scans,
    onnx_search,
    onnx_sequences,
    onnx_special,
)
from ensexport.targets.onnx_file import OnnxFile, Weight, lay_out, weight_of
from ensexport.targets.program import build_program
from ensexport.targets.weight_file import WeightFile, put_all
from ensexport.weighting import WEIGHTS_INPUT

DEFAULT_OPSET = 20
MIN_OPSET = 18


def onnx_model(batched: BatchedGraph, output_names: Sequence[str], *, opset: int | None = None) -> ir.Model:
    """Return the ONNX model of a batched graph, its initializers still without values.

    Args:
        batched: The graph.
        output_names: Names of the outputs, in order, hidden ones last: those stay values of that name in the graph.
        opset: ONNX opset version; None for `DEFAULT_OPSET`, which ONNX Runtime 1.19 and later run.

    Raises:
        OpsetError: The opset cannot be written.
        FrozenDimError: A dynamic dim is missing from the inputs or outputs of the written graph.
        ExportError: The exporter does not know an op; names it.
    """
    wanted = DEFAULT_OPSET if opset is None else opset
    if wanted < MIN_OPSET:
        raise OpsetError(
            f"cannot write opset {wanted}: torch's ONNX exporter writes {MIN_OPSET} and later.",
            hint=f"Use --opset {MIN_OPSET} or more.",
        )
    with batched.member.fake_mode:
        fakes = {w.name: torch.empty(w.shape(batched.n_members), dtype=w.dtype) for w in batched.weights.packed}
    model = _exported(build_program(batched, fakes, with_hidden=True), wanted)
    names = [spec.name for spec in batched.member.specs]
    names += [] if batched.weights_input is None else [WEIGHTS_INPUT]
    _cleaned(model, names, output_names, batched.member.symbols)
    _check_dims(model, batched.member.specs)
    del model.graph.outputs[len(model.graph.outputs) - batched.n_hidden :]
    if batched.weights_input is not None:
        _make_optional(model, batched.n_members)
    return model


def _make_optional(model: ir.Model, n_members: int) -> None:
    """Give the input `member_weights` a default: an initializer of the same name.

    Source: ONNX IR, "Graphs": an initializer that is also an input is its default value
    (https://github.com/onnx/onnx/blob/main/docs/IR.md).
    """
    value = next(value for value in model.graph.inputs if value.name == WEIGHTS_INPUT)
    value.const_value = ir.tensor(np.ones(n_members, np.float32), name=WEIGHTS_INPUT)
    model.graph.initializers[WEIGHTS_INPUT] = value


def member_onnx_model(member: MemberGraph, output_names: Sequence[str]) -> tuple[ir.Model, dict[str, str]]:
    """Return ONE member's own ONNX model: what a user would export for a loop over members.

    Args:
        member: The member graph.
        output_names: Names of the outputs, in order.

    Returns:
        The model with that member's weights, and initializer name -> name of the member's state tensor.
    """
    model = _exported(member.program, DEFAULT_OPSET)
    _cleaned(model, list(member.inputs), output_names, member.symbols)
    states = {name: value.meta.get("packed_name", name) for name, value in model.graph.initializers.items()}
    return model, {name: state.removeprefix("member.") for name, state in states.items()}


def _exported(program: ExportedProgram, opset: int) -> ir.Model:
    use_stand_ins(program.graph)
    try:
        with _quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
                custom_translation_table={
                    **onnx_recurrent.translations(),
                    **onnx_gaps.translations(),
                    **onnx_attention.translations(),
                    **onnx_linalg.translations(),
                    **onnx_norms.translations(),
                    **onnx_pointwise.translations(),
                    **onnx_resize.translations(),
                    **onnx_scans.translations(),
                    **onnx_search.translations(),
                    **onnx_special.translations(),
                },
            )
    except Exception as error:
        raise _explained(error, opset, program) from error
    assert exported is not None
    model: ir.Model = exported.model
    if model.opset_imports.get("") != opset:
        raise OpsetError(
            f"cannot write opset {opset}: the graph could only be written for opset {model.opset_imports.get('')}.",
            hint=f"Leave --opset out (opset {DEFAULT_OPSET}).",
        )
    return model


def _cleaned(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str], symbols: Mapping[str, str]) -> None:
    onnx_passes.rename(model, inputs, outputs, symbols)
    onnx_passes.constant_reshapes(model)
    onnx_passes.remove_identities(model)
    onnx_passes.gather_in_place(model)
    onnx_sequences.split_in_place(model)
    onnx_passes.collapse_reshapes(model)
    onnx_passes.sizes_in_place(model)
    onnx_bfloat16.compute_in_float32(model)
    onnx_passes.cast_constants(model)
    onnx_passes.remove_unused(model)
    onnx_passes.strip_debug_info(model)


def lay_out_onnx(
    model: ir.Model,
    name: str,
    weights: Mapping[str, Weight],
    metadata: Mapping[str, str],
    *,
    external_data: bool = False,
) -> OnnxFile:
    """Work out the bytes of the model's file; external data beside it only where one file cannot hold the weights.

    Args:
        model: What `onnx_model` returned.
        name: Name of the `.onnx` file; external data goes to `<name>.data`.
        weights: The packed initializers by name, without their values.
        metadata: For `metadata_props`.
        external_data: Put the weights beside it in any case.
    """
    for key, text in sorted(metadata.items()):
        model.metadata_props[key] = text
    model.producer_name = "ensexport"
    model.producer_version = metadata.get("ensexport_version", "")
    return lay_out(model, weights, name, max_bytes=0 if external_data else None)


def write_onnx(model: ir.Model, path: Path, weights: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write the model with weights that are in memory.

    Args:
        model: What `onnx_model` returned.
        path: The `.onnx` file; external data goes to `<path>.data`.
        weights: The packed initializers by name.
        metadata: For `metadata_props`.

    Raises:
        OSError: The system refuses.
    """
    shapes = {name: weight_of(tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    layout = lay_out_onnx(model, path.name, shapes, metadata)
    with WeightFile(layout.write(path), layout.places) as file:
        put_all(file, weights)


def _check_dims(model: ir.Model, specs: tuple[TensorSpec, ...]) -> None:
    for spec, value in zip(specs, model.graph.inputs, strict=False):
        assert value.shape is not None
        names = {str(dim) for dim in value.shape if not isinstance(dim, int)}
        frozen = [dim for dim in spec.dim_names if dim not in names]
        if frozen:
            raise FrozenDimError(
                f"cannot keep the promise that '{frozen[0]}' of input '{spec.name}' is dynamic: the ONNX graph has "
                f"{[str(dim) for dim in value.shape]}.",
                hint="Give that dimension a number in --input, or ship .ts or .pt2.",
            )


def _explained(error: Exception, opset: int, program: ExportedProgram) -> ExportError:
    causes: list[str] = []
    node: fx.Node | None = None
    current: BaseException | None = error
    while current is not None:
        text = next((line.strip() for line in str(current).splitlines() if line.strip()), "")
        causes.append(f"{type(current).__name__}: {text[:240]}")
        node = _node_at(current) or node
        current = current.__cause__
    if "opset" in causes[-1].lower() and "version" in causes[-1].lower():
        return OpsetError(f"cannot write opset {opset}: {causes[-1]}", hint="Leave --opset out.")
    hint = "Ship .ts or .pt2 for this model."
    if node is None:
        return ExportError(f"cannot write ONNX: {causes[-1]}", hint=hint)
    origin = _origin(node, program)
    line = source_line(origin)
    where = f"{origin.target}{f' ({line})' if line else ''}"
    if "No ONNX function found" in causes[-1]:
        return ExportError(f"cannot write ONNX: it has no form for {where}.", hint=hint)
    return ExportError(f"cannot write ONNX: {where}: {causes[-1]}", hint=hint)


def _node_at(error: BaseException) -> fx.Node | None:
    """The node that torch's exporter was translating: its message names one only as text, its frames hold it."""
    nodes = [frame.f_locals.get("node") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((node for node in reversed(nodes) if isinstance(node, fx.Node)), None)


def _origin(node: fx.Node, program: ExportedProgram) -> fx.Node:
    """The node of the program that the exporter decomposed into this one."""
    own = {origin.name: origin for origin in program.graph.nodes}
    names = [source.name for source in node.meta.get("from_node", ())]
    return next((own[name] for name in reversed(names) if name in own), node)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's prints, warnings and log lines off the terminal; what matters is raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
