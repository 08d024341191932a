"""The surroundings in which a member is exported: more models keep their dynamic dims, and errors name a line.

Each part changes something of Python's or torch's for the time of the export and puts it back. None of them changes
what a member computes: they keep sizes symbolic where torch would look at them, and leave checks of values out.
"""

from __future__ import annotations

import builtins
import contextlib
import logging
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx.experimental import symbolic_shapes

from ensexport.batching.recurrent import symbolic_time
from ensexport.batching.source import line_of_frames

_WITHOUT_MATMUL = 2  # torch.cdist's "donot_use_mm_for_euclid_dist"
_LOGGERS = ("torch.export", "torch._dynamo", "torch.fx.experimental.symbolic_shapes", "torch._export")


@dataclass(frozen=True)
class FixedSize:
    """A dynamic size that became a number while a member was exported.

    Attributes:
        size: The number.
        line: The user's line that did it, with its text.
    """

    size: int
    line: str


@contextlib.contextmanager
def capturing(module: nn.Module) -> Iterator[list[FixedSize]]:
    """Set the surroundings up; yields a list that fills with the sizes that become numbers, in order."""
    with (
        warnings.catch_warnings(),
        _quiet(),
        torch.no_grad(),
        symbolic_time(),
        _symbolic_len(module),
        _one_kind_of_cdist(),
        _unchecked_distributions(),
        _masks_as_given(),
        _noting_fixed_sizes() as fixed,
    ):
        warnings.simplefilter("ignore")
        yield fixed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch.export's own logging out of the user's terminal; what matters is in our error."""
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in _LOGGERS]
    for logger, _ in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


@contextlib.contextmanager
def _symbolic_len(module: nn.Module) -> Iterator[None]:
    """Let `len(x)` of a tensor be its symbolic size in the model's own code; Python makes a number of it.

    A name in a module's globals hides the builtin, so this reaches the files that define the model's classes only.
    """

    def symbolic(value: Any) -> Any:
        return value.shape[0] if isinstance(value, torch.Tensor) and value.dim() else builtins.len(value)

    spaces: dict[int, dict[str, Any]] = {}
    for part in module.modules():
        for owner in type(part).__mro__:
            own = getattr(vars(owner).get("forward"), "__globals__", None)
            if own is not None and not str(own.get("__name__", "")).startswith("torch.") and "len" not in own:
                spaces[id(own)] = own
    for space in spaces.values():
        space["len"] = symbolic
    try:
        yield
    finally:
        for space in spaces.values():
            space.pop("len", None)


@contextlib.contextmanager
def _one_kind_of_cdist() -> Iterator[None]:
    """`torch.cdist` takes another way for more than 25 rows, which would bound the batch; have it take one."""
    functions: Any = torch._VF
    original = functions.cdist

    def cdist(x1: Any, x2: Any, p: float = 2.0, compute_mode: int | None = None) -> Any:
        return original(x1, x2, p, compute_mode or _WITHOUT_MATMUL)

    functions.cdist = cdist
    try:
        yield
    finally:
        functions.cdist = original


@contextlib.contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """`torch.distributions` looks at the values of its parameters to check them, which no graph can."""
    distribution: Any = torch.distributions.Distribution
    before = distribution._validate_args
    distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        distribution.set_default_validate_args(before)


@contextlib.contextmanager
def _masks_as_given() -> Iterator[None]:
    """`nn.Transformer` and its parts look at the values of a mask to see whether it is the causal one.

    What they find is a hint that lets attention ignore the mask for a faster way to the same result: unless the model
    gives the hint itself, the mask is used.
    """
    functions: Any = torch.nn.modules.transformer
    original = getattr(functions, "_detect_is_causal_mask", None)
    if original is None:  # a private name
        yield
        return
    functions._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        functions._detect_is_causal_mask = original


@contextlib.contextmanager
def _noting_fixed_sizes() -> Iterator[list[FixedSize]]:
    """Note where a symbol is replaced by a number: torch.export tells of it later, without a line."""
    fixed: list[FixedSize] = []
    environment: Any = symbolic_shapes.ShapeEnv
    original = getattr(environment, "_set_replacement", None)
    if original is None:  # a private name: without it the error has no line
        yield fixed
        return

    def noting(self: Any, symbol: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(value, "is_number", False) and symbol not in self.replacements:
            line = line_of_frames(traceback.extract_stack())
            if line:
                fixed.append(FixedSize(int(value), line))
        return original(self, symbol, value, *args, **kwargs)

    environment._set_replacement = noting
    try:
        yield fixed
    finally:
        environment._set_replacement = original
