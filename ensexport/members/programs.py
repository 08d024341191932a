"""Files that run code when they are opened: programs and pickles. Refused, unless the user said to trust them.

`torch.jit.load` and `torch.export.load` both ran a planted payload (torch 2.13.0), and a pickle runs whatever it
names. So each is opened only under its own option, never because a safe way failed.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from typing import Any, BinaryIO

import torch

from ensexport.errors import CheckpointError, UnsafeCheckpointError
from ensexport.members.archive import EXPORTED, TORCHSCRIPT
from ensexport.members.wording import quote_path

_KINDS = {
    TORCHSCRIPT: ("a TorchScript program", "torch.jit.load(...)"),
    EXPORTED: ("a torch.export program (.pt2)", "torch.export.load(...)"),
}


def refuse_program(kind: str, path: str) -> UnsafeCheckpointError:
    """Return the error for a program that nobody said to trust.

    Args:
        kind: `torchscript` or `pt2`.
        path: For messages.
    """
    name, load = _KINDS[kind]
    return UnsafeCheckpointError(
        f"refused {quote_path(path)}: it is {name}, which runs code when it is opened, not a set of weights.",
        hint=f"Where you trust it, give --trust-code, or save only its weights: torch.save({load}.state_dict(), ...).",
    )


def load_program(kind: str, source: str | BinaryIO, path: str) -> dict[str, torch.Tensor]:
    """Open a trusted program, which may run code, and return its weights.

    Args:
        kind: `torchscript` or `pt2`.
        source: What to open.
        path: For messages.

    Raises:
        CheckpointError: It cannot be opened.
    """
    logger = logging.getLogger("torch.export")
    level = logger.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both formats warn that they are beta or deprecated
            logger.setLevel(logging.ERROR)
            program: Any
            if kind == TORCHSCRIPT:
                program = torch.jit.load(source, map_location="cpu")  # type: ignore[no-untyped-call]
                state = program.state_dict()
            else:
                program = torch.export.load(source)
                state = program.state_dict
    except Exception as error:  # torch raises any built-in error on a broken program
        raise CheckpointError(
            f"cannot read {quote_path(path)}: {_KINDS[kind][0]} that this torch cannot open ({_first_line(error)}).",
            hint="Open it with the torch version that wrote it and save its state_dict().",
        ) from error
    finally:
        logger.setLevel(level)
    return {name: tensor.detach() for name, tensor in state.items()}


def load_pickle(source: str | BinaryIO, path: str, *, is_torch: bool) -> Any:
    """Unpickle a trusted file, which may run code.

    Args:
        source: What to open.
        path: For messages.
        is_torch: It was written by `torch.save`; else it is one bare pickle.

    Raises:
        CheckpointError: It names a class that cannot be imported here, or cannot be read at all.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on the source code of pickled modules
            if is_torch:
                is_path = isinstance(source, str)  # a zip: what is not used stays in the file
                return torch.load(source, map_location="cpu", weights_only=False, mmap=is_path)
            assert not isinstance(source, str)
            return pickle.load(source)  # noqa: S301 - the user said so
    except (ImportError, AttributeError) as error:
        missing = getattr(error, "name", None) if isinstance(error, ImportError) else None
        raise CheckpointError(
            f"cannot read {quote_path(path)}: it holds objects whose code cannot be imported here "
            f"({type(error).__name__}: {_first_line(error)}).",
            hint=f"Install {missing.partition('.')[0]!r}, or put its folder on PYTHONPATH."
            if missing
            else "Install the version of the package that wrote it, or put its code on PYTHONPATH.",
        ) from error
    except Exception as error:  # a pickle may raise anything
        raise CheckpointError(
            f"cannot read {quote_path(path)}: it is truncated, damaged, or no pickle "
            f"({type(error).__name__}: {_first_line(error)}).",
            hint="Copy it again, or save it again with torch.save(model.state_dict(), ...).",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
