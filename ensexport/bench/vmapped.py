"""The tutorial's recipe as it stands there, `torch.vmap` over stacked modules: what is compiled or exported instead.

`ensexport.stack` is the same with more checks, and runs the members one by one where vmap cannot; neither
`torch.compile` nor `torch.onnx.export` would make of that what they make of the recipe.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call

from ensexport.compare import Array
from ensexport.errors import ExportError
from ensexport.members import Members
from ensexport.runtime.torch_runner import tensor_from_array
from ensexport.stacking.binding import bind_inputs
from ensexport.stacking.outputs import flatten_outputs
from ensexport.stacking.state import meta_copy, named_tensors


class Vmapped(nn.Module):
    """The members under one `torch.vmap`; takes tensors in the inputs' order and returns a tuple of `(N, B, ...)`.

    Args:
        members: The members.
        inputs: Names of the inputs, in order.
        per_member: Names of those with a leading N.
    """

    def __init__(self, members: Members, inputs: Sequence[str], per_member: Sequence[str]) -> None:
        super().__init__()
        module = members.build(0)
        states = [named_tensors(members.build(k)) for k in range(len(members))]
        self._names = tuple(states[0])
        for number, name in enumerate(self._names):  # names with dots are no buffers' names
            self.register_buffer(f"stacked_{number}", torch.stack([state[name].detach() for state in states]))
        self.__dict__["_base"] = meta_copy(module)  # no sub-module: it holds no state
        binding = bind_inputs(module, inputs)
        self._positions = binding.positions
        self._keywords = {key: index for index, key in enumerate(binding.keywords) if key is not None}
        self._in_dims = tuple(0 if name in per_member else None for name in inputs)
        self.eval()

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run all members."""
        state = {name: getattr(self, f"stacked_{number}") for number, name in enumerate(self._names)}
        return torch.vmap(self._one, in_dims=(0, self._in_dims))(state, tensors)

    def _one(self, state: dict[str, torch.Tensor], tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        args = tuple(tensors[index] for index in self._positions)
        kwargs = {key: tensors[index] for key, index in self._keywords.items()}
        output = functional_call(self.__dict__["_base"], state, args, kwargs, tie_weights=False)
        # torch.compile gives up the whole call at what flatten_outputs does, so it is kept for the rarer structures.
        if isinstance(output, torch.Tensor):
            return (output,)
        if isinstance(output, tuple) and all(isinstance(value, torch.Tensor) for value in output):
            return output
        if isinstance(output, dict) and all(isinstance(value, torch.Tensor) for value in output.values()):
            return tuple(output.values())
        return tuple(flatten_outputs(output).values())


def export_vmapped(
    module: Vmapped, path: Path, feed: Mapping[str, Array], outputs: Sequence[str], *, opset: int
) -> None:  # fmt: skip
    """Write what `torch.onnx.export` makes of the module, for inputs of these shapes only.

    Raises:
        ExportError: torch cannot run or export it; carries torch's own words.
    """
    tensors = tuple(tensor_from_array(array) for array in feed.values())
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                module,
                tensors,
                str(path),
                input_names=list(feed),
                output_names=list(outputs),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        reason = next((line for line in str(root).splitlines() if line.strip()), type(root).__name__)
        raise ExportError(f"torch.onnx.export of the vmapped module fails: {reason.strip()[:200]}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own reports away."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
