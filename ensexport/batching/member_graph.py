"""One member -> its ATen graph, captured by `torch.export` with the dynamic dimensions that were asked for.

The member is wrapped so that the captured program takes the inputs by position, in the file's order, and returns a
flat tuple of tensors: dicts, dataclasses and None never reach the engine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from ensexport.batching.capturing import FixedSize, capturing
from ensexport.batching.equations import spell_out
from ensexport.batching.examples import Example
from ensexport.batching.functional import functionalized
from ensexport.batching.recurrent import restore_aten
from ensexport.batching.regions import inline_regions
from ensexport.batching.source import error_line, source_line
from ensexport.errors import (
    ControlFlowError,
    EnsexportError,
    FrozenDimError,
    MutationError,
    RandomModelError,
    UnsupportedModelError,
)
from ensexport.spec import TensorSpec, dim_names
from ensexport.stacking.binding import Binding, bind_inputs
from ensexport.stacking.outputs import flatten_outputs

aten = torch.ops.aten

# Assertions that torch.export adds about sizes and dtypes. Every artifact is validated at several sizes instead.
_ASSERTIONS = {
    aten._assert_async.msg,
    aten._assert_scalar.default,
    aten._assert_tensor_metadata.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}


@dataclass(frozen=True)
class MemberGraph:
    """One member's functional ATen graph.

    Attributes:
        program: The exported program it belongs to.
        graph: The ATen graph: the program's, or one rewritten from it.
        specs: The inputs, in the file's order.
        output_names: Contract names of the outputs.
        inputs: Input name -> placeholder.
        state: Placeholder -> name of the parameter, buffer or lifted constant, as in the member's own module.
        constants: Values of lifted constants by name: tensors made in forward, the same for every member.
        outputs: The output nodes.
        dim_ranges: Dynamic dim -> smallest and largest size the model itself allows (None = no upper bound).
        symbols: Symbol in the graph's shapes -> dynamic dim.
    """

    program: ExportedProgram
    graph: fx.Graph
    specs: tuple[TensorSpec, ...]
    output_names: tuple[str, ...]
    inputs: Mapping[str, fx.Node]
    state: Mapping[fx.Node, str]
    constants: Mapping[str, torch.Tensor]
    outputs: tuple[fx.Node, ...]
    dim_ranges: Mapping[str, tuple[int, int | None]]
    symbols: Mapping[str, str]

    @property
    def fake_mode(self) -> FakeTensorMode:
        """The fake mode all of the graph's values belong to."""
        mode: FakeTensorMode = next(iter(self.inputs.values())).meta["val"].fake_mode
        return mode

    @property
    def output_values(self) -> tuple[torch.Tensor, ...]:
        """Fake values of the outputs: one member's shapes and dtypes."""
        return tuple(node.meta["val"] for node in self.outputs)

    def forget_weights(self) -> None:
        """Let go of the captured member's parameters and buffers; the graph needs only their shapes."""
        state = self.program.state_dict
        for name, tensor in state.items():
            empty = torch.empty_like(tensor, device="meta")
            state[name] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty

    def copied(self) -> MemberGraph:
        """The same on a graph of its own, which may be changed."""
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        graph.graph_copy(self.graph, copies)
        outputs = tuple(copies[node] for node in self.outputs)
        graph.output(outputs)
        inputs = {name: copies[node] for name, node in self.inputs.items()}
        state = {copies[node]: name for node, name in self.state.items()}
        return replace(self, graph=graph, inputs=inputs, state=state, outputs=outputs)


class _FlatMember(nn.Module):
    """A member that takes its inputs by position and returns a flat tuple."""

    def __init__(self, member: nn.Module, binding: Binding) -> None:
        super().__init__()
        self.member = member
        self.binding = binding

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(flatten_outputs(self.binding.call(self.member, tensors)).values())


def capture_member(module: nn.Module, specs: Sequence[TensorSpec], example: Example) -> MemberGraph:
    """Export one member with `torch.export`.

    Args:
        module: The member, in eval mode.
        specs: Its inputs; a named dim is dynamic.
        example: Inputs that the member was seen to accept, and what it returned for them.

    Raises:
        FrozenDimError: A dynamic dim is fixed by the model; names the dim and the line.
        ControlFlowError: The model branches on values; names the line.
        RandomModelError: It draws random numbers; names op and line.
        MutationError: It writes to its own buffers or to its inputs.
        UnsupportedModelError: `torch.export` cannot capture it for another reason.
    """
    binding = bind_inputs(module, [spec.name for spec in specs])
    flat = _FlatMember(module, binding).eval()
    program = _exported(flat, specs, tuple(example.feed.values()))
    inline_regions(program)
    _refuse_random(program)
    program = functionalized(program)
    restore_aten(program.graph)
    spell_out(program.graph)
    for node in reversed(program.graph.nodes):
        if node.op == "call_function" and node.target in _ASSERTIONS:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    return _described(program, tuple(specs), tuple(example.outputs))


def _exported(flat: nn.Module, specs: Sequence[TensorSpec], tensors: tuple[torch.Tensor, ...]) -> ExportedProgram:
    """Export with named dims; where the model bounds them (`height >= 4`, `3 * steps <= 128`), let torch find how."""
    named = {name: Dim(name, min=1) for name in dim_names(specs)}
    free = dict.fromkeys(named, Dim.DYNAMIC)
    fixed: list[FixedSize] = []
    try:
        return _export(flat, specs, tensors, named, fixed)
    except EnsexportError:
        raise
    except Exception as error:  # noqa: BLE001 - explained below, if torch cannot find them either
        explained, first = _explained(error, specs, fixed), error
    try:
        return _export(flat, specs, tensors, free, [])
    except EnsexportError:
        raise
    except Exception:  # noqa: BLE001 - as above
        raise explained from first


def _export(
    flat: nn.Module,
    specs: Sequence[TensorSpec],
    tensors: tuple[torch.Tensor, ...],
    dims: Mapping[str, Any],
    fixed: list[FixedSize],
) -> ExportedProgram:
    shapes = tuple({dim: dims[name] for dim, name in enumerate(spec.dims) if isinstance(name, str)} for spec in specs)
    with capturing(flat) as noted:
        try:
            return torch.export.export(flat, tensors, dynamic_shapes=(shapes,), strict=False)
        finally:
            fixed += noted


def _explained(error: Exception, specs: Sequence[TensorSpec], fixed: Sequence[FixedSize]) -> EnsexportError:
    text = str(error)
    line = error_line(error)
    where = f" ({line})" if line else ""
    if re.search(r"data-dependent|_local_scalar_dense|dynamic_output_shape|Could not guard|unbacked", text, re.I) or (
        "DynamicOutputShape" in type(error).__name__ or "DataDependent" in type(error).__name__
    ):
        return ControlFlowError(
            f"cannot pack the model: its Python code depends on the values of its data{where}.",
            hint="A graph has one path for all inputs: replace the branch by torch.where or move it out of forward.",
        )
    frozen = re.findall(r"marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)", text)
    if frozen or "Constraints violated" in text:
        dims = ", ".join(f"'{name}' (fixed at {size})" for name, size in dict(frozen).items())
        dims = dims or ", ".join(f"'{name}'" for name in dim_names(specs))
        sizes = {int(size) for _, size in frozen}
        lines = [item.line for item in fixed if item.size in sizes or not sizes]
        where = f" at {lines[0]}" if lines else where
        # With the line, torch's own words add nothing.
        return FrozenDimError(
            f"cannot keep the promise that {dims} is dynamic: the model fixes it{where}. "
            f"{'' if lines else _reason(text)}".strip(),
            hint="Give that dimension a number in --input, or take the fixed size out of the model's code.",
        )
    return UnsupportedModelError(
        f"torch.export cannot capture the model{where}: {type(error).__name__}: {_first_line(text)}",
        hint="Run torch.export.export on one member to see the whole report.",
    )


def _reason(text: str) -> str:
    lines = [line.strip(" -") for line in text.splitlines() if line.strip().startswith("-")]
    return lines[0][:300] if lines else ""


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:300]


def _refuse_random(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags and not _is_off(node):
            raise RandomModelError(
                f"cannot pack the model: it draws random numbers in eval mode ({node.target}, {source_line(node)}).",
                hint="Draw them outside and pass them as an input, or switch the layer off in eval mode.",
            )


def _is_off(node: fx.Node) -> bool:
    """Dropout layers carry the tag too, and are no-ops when their `train` argument is False."""
    assert isinstance(node.target, OpOverload)
    arguments = {argument.name: index for index, argument in enumerate(node.target._schema.arguments)}
    for name in ("train", "training", "dropout_p", "dropout"):
        if name in arguments:
            index = arguments[name]
            value = node.args[index] if index < len(node.args) else node.kwargs.get(name, False)
            return value in (False, 0, None)
    return False


def _described(program: ExportedProgram, specs: tuple[TensorSpec, ...], names: tuple[str, ...]) -> MemberGraph:
    nodes = {node.name: node for node in program.graph.nodes}
    inputs: list[fx.Node] = []
    state: dict[fx.Node, str] = {}
    constants: dict[str, torch.Tensor] = {}
    for spec in program.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(node)
            continue
        if spec.kind is InputKind.CUSTOM_OBJ or spec.target is None:
            raise UnsupportedModelError(f"cannot pack the model: it holds a script object ('{spec.target}').")
        name = spec.target.removeprefix("member.")
        state[node] = name
        if spec.kind is InputKind.CONSTANT_TENSOR:
            constants[name] = program.constants[spec.target]
    outputs: list[fx.Node] = []
    for out in program.graph_signature.output_specs:
        if out.kind is not OutputKind.USER_OUTPUT:
            target = (out.target or "").removeprefix("member.")
            raise MutationError(
                f"cannot pack the model: running it writes to '{target}', so the result would depend on earlier runs.",
                hint="Guard the update with `if self.training:`, or compute it without storing.",
            )
        outputs.append(nodes[out.arg.name])
    _refuse_data_dependent_shapes(outputs, program)
    ranges, symbols = _dims(program, specs, inputs)
    return MemberGraph(
        program,
        program.graph,
        specs,
        names,
        {spec.name: node for spec, node in zip(specs, inputs, strict=True)},
        state,
        constants,
        tuple(outputs),
        ranges,
        symbols,
    )


def _refuse_data_dependent_shapes(outputs: Sequence[fx.Node], program: ExportedProgram) -> None:
    """Members would return different shapes for one input: there is no `(N, ...)` of them."""
    for output in outputs:
        if not free_unbacked_symbols(output.meta["val"]):
            continue
        maker = next(node for node in program.graph.nodes if free_unbacked_symbols(node.meta.get("val")))
        line = source_line(maker)
        raise ControlFlowError(
            f"cannot pack the model: the shape of an output depends on the values of its data "
            f"({maker.target}{f', {line}' if line else ''}).",
            hint="Return all elements and a mask instead: the members' results must have one shape.",
        )


def _dims(
    program: ExportedProgram, specs: tuple[TensorSpec, ...], inputs: Sequence[fx.Node]
) -> tuple[dict[str, tuple[int, int | None]], dict[str, str]]:
    ranges: dict[str, tuple[int, int | None]] = {}
    symbols: dict[str, str] = {}
    for spec, node in zip(specs, inputs, strict=True):
        for dim, size in zip(spec.dims, node.meta["val"].shape, strict=True):
            if not isinstance(dim, str):
                continue
            if isinstance(size, int):
                raise FrozenDimError(
                    f"cannot keep the promise that '{dim}' of input '{spec.name}' is dynamic: "
                    f"torch.export fixed it at {size}.",
                    hint="Give that dimension a number in --input.",
                )
            expr = size.node.expr
            if expr.is_symbol:
                symbols[str(expr)] = dim
                allowed = program.range_constraints.get(expr)
                upper = None if allowed is None or not allowed.upper.is_Integer else int(allowed.upper)
                lower = 1 if allowed is None else int(allowed.lower)
                # torch.export says 2 of a free dim whatever the model does with 1; the validation tries 1.
                ranges.setdefault(dim, (1 if lower <= 2 else lower, upper))
    return ranges, symbols
