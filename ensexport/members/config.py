"""`ensexport.toml` and `[tool.ensexport]`: the options of `pack`, written down once for a project.

The file is looked for from the current directory upwards, never in a folder that checkpoints come from: a
downloaded folder must not be able to choose code (CVE-2026-5241 was that). Standard library only, so that the
command line can read it before torch is loaded.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensexport.errors import ConfigError, UsageError
from ensexport.members.discovery import CONFIG_NAMES, holds_checkpoints
from ensexport.members.wording import close_match, join_some, quote_path

_TOML_TYPES = {bool: "true or false", int: "an integer", float: "a float", str: "a string", list: "a list"}


@dataclass(frozen=True)
class Config:
    """One configuration file.

    Attributes:
        path: The file; relative model paths in it are relative to its folder, `path.parent`.
        values: By option name without dashes, one type each: `model-args` is a dict; `inputs`, `per-member`,
            `emit` and `output-names` are lists of strings; `atol` and `rtol` are floats.
    """

    path: Path
    values: dict[str, object]


@dataclass(frozen=True)
class FoundConfig:
    """What the search found.

    Attributes:
        config: The nearest file that may be obeyed, or None.
        warning: Which files were found and not obeyed; empty if there was none.
    """

    config: Config | None
    warning: str = ""


def find_config(start: Path, *, checkpoint_paths: Sequence[str | Path] = ()) -> FoundConfig:
    """Look from `start` upwards for the nearest configuration.

    `ensexport.toml` wins over `pyproject.toml` in the same folder; a `pyproject.toml` without a
    `[tool.ensexport]` table does not stop the search.

    Args:
        start: The folder to begin in, usually the current directory.
        checkpoint_paths: What is to be packed: folders, files or globs. A configuration in or below such a
            folder, or beside such a file, is not obeyed but warned about, and the search goes on.

    Raises:
        ConfigError: The file found cannot be read, or holds an unknown name or a wrong type.
    """
    ignored: list[str] = []
    here = start.resolve()
    for folder in (here, *here.parents):
        for path in (folder / name for name in CONFIG_NAMES):
            if not path.is_file() or not _speaks_to_us(path):
                continue
            if holds_checkpoints(folder, checkpoint_paths):
                ignored.append(quote_path(path))
                continue
            return FoundConfig(load_config(path), _warn_of(ignored))
    return FoundConfig(None, _warn_of(ignored))


def load_config(path: str | Path) -> Config:
    """Read one configuration file and check every name and type in it.

    Args:
        path: A `pyproject.toml` (its `[tool.ensexport]` table is read) or a file of any other name, whose
            top level is read.

    Raises:
        ConfigError: The file is missing, unreadable or no TOML (names the line), a `pyproject.toml` has no
            such table, a name is unknown (lists the valid ones and the closest), or a value has a wrong type.
    """
    path = Path(path)
    try:
        table: object = _read_toml(path)
    except FileNotFoundError as error:
        raise ConfigError(f"no such configuration file: {quote_path(path)}.") from error
    except OSError as error:
        raise ConfigError(f"cannot read {quote_path(path)}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{quote_path(path)} is not valid TOML: {error}.", hint="Mend that line.") from error
    if path.name == "pyproject.toml":
        table = _our_table(table)
        if table is None:
            raise ConfigError(f"{quote_path(path)} has no [tool.ensexport] table.")
    if not isinstance(table, dict):
        raise ConfigError(f"[tool.ensexport] in {quote_path(path)} is {_type_text(table)}: expected a table.")
    return Config(path, {name: _convert(path, name, value) for name, value in table.items()})


def parse_model_args(text: str) -> dict[str, Any]:
    """Parse the JSON object given as `--model-args`.

    Raises:
        UsageError: The text is no JSON, or another value than an object.
    """
    hint = """Write it like '{"width": 128}'."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"cannot read the model arguments {text!r}: {error}.", hint=hint) from error
    if not isinstance(value, dict):
        raise UsageError(f"the model arguments {text!r} are no JSON object.", hint=hint)
    return value


def _warn_of(ignored: Sequence[str]) -> str:
    if not ignored:
        return ""
    verb = "lies" if len(ignored) == 1 else "lie"
    advice = "Name one with --config if you trust it."
    return f"{join_some(ignored)} {verb} among the checkpoints and will not be obeyed. {advice}"


def _speaks_to_us(path: Path) -> bool:
    """True for `ensexport.toml`, and for a `pyproject.toml` that has our table or is broken near it."""
    if path.name != "pyproject.toml":
        return True
    try:
        return _our_table(_read_toml(path)) is not None
    except tomllib.TOMLDecodeError:
        return b"tool.ensexport" in path.read_bytes()  # someone else's broken file does not stop us
    except (OSError, UnicodeDecodeError):
        return False


def _read_toml(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return tomllib.load(file)


def _our_table(document: object) -> object | None:
    tool = document.get("tool") if isinstance(document, dict) else None
    return tool.get("ensexport") if isinstance(tool, dict) else None


# -- one converter a value: returns the value in its one type, or raises ValueError ------------------


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        raise ValueError
    return [_text(item) for item in value]


def _texts_or_commas(value: object) -> list[str]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return _texts(value)


def _table_or_json(value: object) -> dict[str, Any]:
    if isinstance(value, str):
        return parse_model_args(value)
    if not isinstance(value, dict):
        raise ValueError
    return value


def _opset(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError
    return value


def _size(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError
    return float(value)


def _one_of(*choices: object) -> tuple[str, Callable[[object], object]]:
    def convert(value: object) -> object:
        if type(value) is not type(choices[0]) or value not in choices:
            raise ValueError
        return value

    return f"one of {', '.join(map(repr, choices))}", convert


def _integers_or_commas(value: object) -> object:
    is_list = isinstance(value, list) and all(type(item) is int and item > 0 for item in value)
    if not (is_list and value) and not isinstance(value, str):
        raise ValueError
    return value


def _emit(value: object) -> object:
    """`logits=probs,entropy` is one text, not two."""
    return [value] if isinstance(value, str) and "=" in value else _texts_or_commas(value)


def _axes(value: object) -> object:
    axes = value if isinstance(value, list) else [value]
    if not all(type(axis) in (int, str) for axis in axes):
        raise ValueError
    return axes


def _weights(value: object) -> object:
    if not isinstance(value, str) and not (
        isinstance(value, list) and value and all(type(number) in (int, float) for number in value)
    ):
        raise ValueError
    return value


_OPTIONS: dict[str, tuple[str, Callable[[object], object]]] = {
    "model": ("a string", _text),
    "model-args": ("a table or a JSON object in a string", _table_or_json),
    "weights": _one_of("ema", "raw"),
    "key": ("a string", _text),
    "strip-prefix": ("a string", _text),
    "allow-nonfinite": _one_of(True, False),
    "inputs": ("a list of strings", _texts),
    "per-member": ("a list of strings", _texts),
    "emit": ("a list of strings or a comma-separated string", _emit),
    "class-axis": ("an integer, a string or a list of these", _axes),
    "member-weights": ("a string or a list of numbers", _weights),
    "member-axis": _one_of(0, 1),
    "dtype": _one_of("float32", "float16", "bfloat16"),
    "io-dtype": _one_of("float32", "float16", "bfloat16"),
    "opset": ("a positive integer", _opset),
    "target": _one_of("cpu", "cuda", "tensorrt", "portable"),
    "strategy": _one_of("auto", "stacked", "unrolled", "tune"),
    "tune-batch": ("a list of positive integers or a comma-separated string", _integers_or_commas),
    "atol": ("a number of 0 or more", _size),
    "rtol": ("a number of 0 or more", _size),
    "validate-members": ("a string", _text),
    "output-names": ("a list of strings or a comma-separated string", _texts_or_commas),
    "formats": ("a list of strings or a comma-separated string", _texts_or_commas),
    "layout": _one_of("folder", "triton"),
    "name": ("a string", _text),
    "labels": ("a string", _text),
    "sample-inputs": ("a string", _text),
    "max-batch-size": ("an integer of 0 or more", _count),
    "no-state": _one_of(True, False),
    "external-data": _one_of(True, False),
}


_TYPED_ONLY = ("allow-pickle", "trust-code")
"""A file may not open the door to code; only who types the command may."""


def _convert(path: Path, name: str, value: object) -> object:
    if name in _TYPED_ONLY:
        raise ConfigError(
            f"cannot obey {name!r} in {quote_path(path)}: a settings file may not allow code to be run.",
            hint=f"Type --{name} for the one command that needs it.",
        )
    if name not in _OPTIONS:
        raise ConfigError(
            f"unknown name {name!r} in {quote_path(path)}.{close_match(name, _OPTIONS)}",
            hint=f"Valid names are {', '.join(_OPTIONS)}.",
        )
    expected, convert = _OPTIONS[name]
    try:
        return convert(value)
    except (ValueError, UsageError) as error:
        got = _type_text(value) if isinstance(value, dict | list) else f"{value!r} ({_type_text(value)})"
        raise ConfigError(f"wrong value for {name!r} in {quote_path(path)}: expected {expected}, got {got}.") from error


def _type_text(value: object) -> str:
    return _TOML_TYPES.get(type(value), "a table" if isinstance(value, dict) else f"a {type(value).__name__}")
