"""Importing and calling code that the user wrote: every way it can fail becomes an `ArchitectureError`.

The one place where any exception is caught: a model file may raise whatever it likes, even `SystemExit`, and
the user needs its type, its text and its line. What such code prints goes to stderr; stdout is the answer.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ensexport.errors import ArchitectureError, EnsexportError
from ensexport.members.wording import close_match, join_some, quote_path

_PRIVATE_NAME = "_ensexport_model_"
_MAX_TEXT = 1000


@contextlib.contextmanager
def running_user_code(action: str, *, hint: str = "") -> Iterator[None]:
    """Turn whatever the body raises into an error that says what, why and where.

    Args:
        action: What failed, to begin the message with, for example `cannot import 'model.py'`.
        hint: What to do.

    Raises:
        ArchitectureError: The body raised; names the exception's type, text and line. Chained.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except EnsexportError:
        raise
    except (Exception, SystemExit) as error:  # user code may raise anything; it is reported, not passed over
        raise ArchitectureError(f"{action}: {_describe(error)}.", hint=hint) from error


def import_attribute(source: str, attribute: str, *, base_dir: Path) -> Any:
    """Import a file or module and return one attribute of it.

    Args:
        source: `path/to/file.py`, or a dotted module name.
        attribute: Its name there; may be dotted.
        base_dir: What relative paths are relative to; also searched, last, for modules.

    Raises:
        ArchitectureError: The file or module does not exist, fails to import, or has no such attribute.
    """
    is_file = source.endswith(".py") or "/" in source or os.sep in source
    module = _import_file(base_dir / source) if is_file else _import_module(source, base_dir)
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise _no_attribute(value, part, source, module)
        value = getattr(value, part)
    return value


def _import_file(path: Path) -> ModuleType:
    """Load a file under a private name, so that it cannot take the place of an installed module.

    The name depends on the file's name alone (and on what was loaded before), not on its folder: class names
    get into exported files, and those must not differ from folder to folder.
    """
    if not path.is_file():
        kind = "is not a file" if path.exists() else "does not exist"
        raise ArchitectureError(f"cannot import {quote_path(path)}: it {kind}.", hint="Check the path in --model.")
    path = path.resolve()
    _append_to_path(path.parent)
    name = base = _PRIVATE_NAME + re.sub(r"\W", "_", path.stem)
    number = 1
    while name in sys.modules:
        number += 1
        name = f"{base}_{number}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ArchitectureError(
            f"cannot import {quote_path(path)}: it is no Python file.", hint="Its name must end in .py."
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with running_user_code(f"cannot import {quote_path(path)}", hint="Run it with Python to see more."):
            _exec(spec.loader, module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _exec(loader: importlib.abc.Loader, module: ModuleType) -> None:
    try:
        loader.exec_module(module)
    except ImportError as error:
        if "no known parent package" in str(error):
            raise ImportError(
                f"{error}; a file with relative imports must be named as package.module:factory"
            ) from error
        raise


def _import_module(name: str, base_dir: Path) -> ModuleType:
    _append_to_path(base_dir)
    importlib.invalidate_caches()
    with running_user_code(f"cannot import {name!r}"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there and imports one that is not
            raise ArchitectureError(
                f"cannot import {name!r}: no module named {error.name!r}, neither installed nor in "
                f"{quote_path(base_dir)}.",
                hint="Name a file as path/to/file.py:Factory, or install the package.",
            ) from error


def _append_to_path(folder: Path) -> None:
    """Let siblings be imported; last, so that a `torch.py` there cannot shadow an installed package."""
    entry = str(folder.resolve())
    if entry not in sys.path:
        sys.path.append(entry)


def _no_attribute(value: object, part: str, source: str, module: ModuleType) -> ArchitectureError:
    names = [name for name in dir(value) if not name.startswith("_")]
    own = [name for name in names if getattr(getattr(value, name, None), "__module__", "") == module.__name__]
    defined = f" It defines {join_some(own, limit=8)}." if own else ""
    return ArchitectureError(
        f"{source!r} has no attribute {part!r}.{close_match(part, names)}{defined}",
        hint="Name a class or a function that returns a torch.nn.Module.",
    )


def _describe(error: BaseException) -> str:
    text = str(error)[:_MAX_TEXT]
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    where = _location(error)
    return f"{what} ({where})" if where else what


def _location(error: BaseException) -> str:
    """Return `file:line` of the last line of the user's own code that ran."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    own = [frame for frame in frames if not _is_library(frame.filename)]
    last = (own or frames)[-1:]
    return f"{last[0].filename}:{last[0].lineno}" if last else ""


def _is_ours(filename: str) -> bool:
    """True for this package and for Python's frozen import machinery."""
    return filename.startswith("<") or Path(filename).parent == Path(__file__).parent


def _is_library(filename: str) -> bool:
    """True for Python's own library and torch, whose lines tell the user less than theirs."""
    path = Path(filename)
    if Path(torch.__file__).parent in path.parents:
        return True
    installed = {"site-packages", "dist-packages"}.intersection(path.parts)
    return Path(sysconfig.get_path("stdlib")) in path.parents and not installed
