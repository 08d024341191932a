"""`--model` -> something that builds the network: the code a state dict does not hold.

It comes from the user alone (command line, or a configuration of theirs), never from a checkpoint. A file, a
module, a class, a factory and a finished module all end as an `Architecture`, which builds anew each time.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet

from torch import nn

from ensexport.errors import ArchitectureError, UsageError
from ensexport.members.closures import function_with_own_parts
from ensexport.members.config import parse_model_args
from ensexport.members.libraries import is_library_name, library_factory
from ensexport.members.user_code import import_attribute, running_user_code

__all__ = ["Architecture", "ModelSource", "parse_model_args", "resolve_architecture"]

_FORMS = "Write it as path/to/file.py:Factory, package.module:factory, timm:NAME, torchvision:NAME or hf:FOLDER."


@dataclass(frozen=True, eq=False)
class Architecture:
    """A way to build one untrained network, again and again.

    Attributes:
        name: What the user said, for messages and provenance.
        factory: Called with `model_args` for each build.
        model_args: Keyword arguments.
    """

    name: str
    factory: Callable[..., object] = field(repr=False)
    model_args: Mapping[str, Any] = field(default_factory=dict)
    _built: WeakSet[nn.Module] = field(default_factory=WeakSet, init=False, repr=False)

    def build(self) -> nn.Module:
        """Build the network and return it in eval mode.

        No two builds share a sub-module: a factory that hands out the same object twice gets it copied, or
        loading one member would overwrite another.

        Raises:
            ArchitectureError: The factory does not take the arguments, raises (names type, text and line), or
                returns no `torch.nn.Module`.
        """
        self._check_arguments()
        with running_user_code(f"cannot build {self.name!r}", hint="Check --model and --model-args."):
            module = self.factory(**self.model_args)
        if not isinstance(module, nn.Module):
            raise ArchitectureError(
                f"{self.name!r} returned {_describe(module)}: expected a torch.nn.Module.",
                hint="Name a class or a function that returns the network.",
            )
        if any(part in self._built for part in module.modules()):
            module = _copied(module, self.name)
        self._built.update(module.modules())
        with running_user_code(f"cannot put {self.name!r} into eval mode"):
            module.eval()
        return module

    def _check_arguments(self) -> None:
        try:
            signature = inspect.signature(self.factory)
        except (TypeError, ValueError):
            return  # written in C: the call itself will tell
        try:
            signature.bind(**self.model_args)
        except TypeError as error:
            given = ", ".join(f"{name}={value!r}" for name, value in self.model_args.items())
            raise ArchitectureError(
                f"cannot call {self.name!r} with ({given}): {error}; it takes {signature}.",
                hint="Give its arguments with --model-args.",
            ) from error


ModelSource = str | Callable[..., object] | nn.Module | Architecture
"""What names an architecture: a text, a class or factory, a finished module (copied), or a resolved one."""


def resolve_architecture(
    model: ModelSource, model_args: Mapping[str, Any] | None = None, base_dir: str | Path | None = None
) -> Architecture:
    """Find the code that builds the members' network. Texts are imported here, nothing is built yet.

    Args:
        model: `path/to/file.py:Factory`, `package.module:factory`, `timm:NAME`, `torchvision:NAME`, `hf:FOLDER`, a
            class or factory, or a module to copy.
        model_args: Keyword arguments for the factory.
        base_dir: What a relative path is relative to, and where modules are looked for after the installed
            ones: the configuration's folder. None means the current directory.

    Raises:
        UsageError: The text has another form, or arguments are given for a finished module.
        ArchitectureError: The file, module or library is missing, fails to import (names type, text and line),
            has no such attribute or network (names close ones), or the attribute cannot be called.

    Example:
        >>> resolve_architecture(nn.Linear, {"in_features": 4, "out_features": 2}).build()
        Linear(in_features=4, out_features=2, bias=True)
    """
    arguments = dict(model_args or {})
    if isinstance(model, Architecture):
        if arguments:
            raise UsageError(f"{model.name!r} is resolved already: its arguments cannot be changed.")
        return model
    if isinstance(model, str):
        folder = Path.cwd() if base_dir is None else Path(base_dir)
        if is_library_name(model):
            return Architecture(model, library_factory(model, arguments, base_dir=folder), arguments)
        source, attribute = _split(model)
        return _from_object(import_attribute(source, attribute, base_dir=folder), model, arguments)
    return _from_object(model, _name_of(model), arguments)


def _split(text: str) -> tuple[str, str]:
    source, colon, attribute = text.rpartition(":")
    if not (colon and source.strip() and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", attribute)):
        raise UsageError(f"cannot read the model {text!r}.", hint=_FORMS)
    return source, attribute


def _from_object(target: object, name: str, arguments: dict[str, Any]) -> Architecture:
    if isinstance(target, nn.Module):
        if arguments:
            raise UsageError(
                f"{name!r} is a finished module, yet arguments are given: {', '.join(arguments)}.",
                hint="Name its class instead, or leave the arguments out.",
            )
        return Architecture(name, lambda: _copied(target, name))
    if not callable(target):
        raise ArchitectureError(
            f"{name!r} is {_describe(target)}: expected a class or function that builds the network.",
            hint=_FORMS,
        )
    return Architecture(name, target, arguments)


def _copied(module: nn.Module, name: str) -> nn.Module:
    """A copy of a network that is there once, so that each member has its own."""
    function = function_with_own_parts(module)
    if function is not None:
        raise ArchitectureError(
            f"cannot copy {name!r}: {function} is a function that holds a part of this very network, and a copy would "
            "run it with the weights of the original.",
            hint="Name a function that builds a new network at each call, or write it as a method of a subclass.",
        )
    with running_user_code(f"cannot copy {name!r}, which returns one object twice"):
        return copy.deepcopy(module)


def _name_of(model: object) -> str:
    named = type(model) if isinstance(model, nn.Module) else model
    return str(getattr(named, "__qualname__", None) or repr(named)).rpartition("<locals>.")[2]


def _describe(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    return f"a value of type {type(value).__qualname__}"
