"""`timm:NAME`, `torchvision:NAME` and `hf:FOLDER` -> a factory: networks that an installed library knows by name.

Weights come from the checkpoints alone: no library is asked for any, nothing is downloaded, and no code beside a
`config.json` is run. A library is imported when one of its names is asked for, so that it need not be installed.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ensexport.errors import ArchitectureError, StackError, UsageError
from ensexport.members.containers import Origin
from ensexport.members.user_code import running_user_code
from ensexport.members.wording import close_match, join_some, quote_path

OWN_NAME = "timm"
"""As a whole model text: the name that the checkpoints themselves hold."""

Factory = Callable[..., object]
"""Builds the network from the user's model arguments."""

_INSTALL = 'Install it: pip install "ensexport[zoo]".'
_PACKAGES = ("timm", "torchvision", "transformers")
_ATTENTION = ("sdpa", "eager")
_RESERVED = {
    "timm": ("pretrained", "checkpoint_path"),
    "torchvision": ("weights", "weights_backbone", "pretrained", "pretrained_backbone"),
    "hf": ("trust_remote_code", "auto_map"),
}
"""Arguments that would fetch other weights or run other code."""


def is_library_name(text: str) -> bool:
    """True for `timm:NAME`, `torchvision:NAME`, `hf:FOLDER`, and for one of these words alone."""
    return text.partition(":")[0] in _RESERVED


def library_factory(text: str, model_args: Iterable[str], *, base_dir: Path) -> Factory:
    """Look up a name in its library. The library is imported here, nothing is built yet.

    Args:
        text: `timm:NAME`, `torchvision:NAME` or `hf:FOLDER`.
        model_args: Names of the arguments the factory will be called with.
        base_dir: What a relative FOLDER is relative to.

    Raises:
        UsageError: The name is left out, or an argument is one that the library must not be given.
        ArchitectureError: The library is not installed or cannot be imported, or does not know the name (says
            close ones); the folder has no usable `config.json`, or one that needs code of its own.
    """
    library, _, name = text.partition(":")
    if not name.strip():
        form = "hf:FOLDER_WITH_config.json" if library == "hf" else f"{library}:NAME"
        raise UsageError(f"cannot read the model {text!r}: no name is given.", hint=f"Write it as {form}.")
    reserved = [argument for argument in model_args if argument in _RESERVED[library]]
    if reserved:
        raise UsageError(
            f"cannot give {text!r} the argument {reserved[0]!r}: weights come from the checkpoints, code from the "
            "installed library.",
            hint="Leave it out of --model-args.",
        )
    if library == "timm":
        return _timm_factory(name)
    if library == "torchvision":
        return _torchvision_factory(name)
    return _transformers_factory(base_dir / name)


def own_architecture(origins: Sequence[tuple[str, Origin | None]]) -> tuple[str, dict[str, Any]]:
    """Return the timm name and arguments that the checkpoints themselves hold, for `--model timm`.

    Args:
        origins: `(label, origin)` for each member, for example `("member 3 (runs/3.pth.tar)", Origin("resnet18"))`.

    Returns:
        `timm:NAME`, and those training options that shape the network: `num_classes`, `in_chans`, `global_pool`
        and `bn_eps`.

    Raises:
        ArchitectureError: A checkpoint does not say what it is.
        StackError: Two checkpoints do not say the same; names both members and both values.

    Source: timm 1.0.31 utils/checkpoint_saver.py (`arch`, `args`) and train.py (`create_model`).
    """
    named: list[tuple[str, Origin]] = []
    for label, origin in origins:
        if origin is None:
            raise ArchitectureError(
                f"{label} does not say what its architecture is: expected timm's key 'arch' beside the weights.",
                hint="Name it: --model timm:NAME.",
            )
        named.append((label, origin))
    first_label, first = named[0]
    for label, other in named[1:]:
        if (first.arch, first.model_args) != (other.arch, other.model_args):
            raise StackError(
                f"cannot stack {_describe(first)} ({first_label}) with {_describe(other)} ({label}): the checkpoints "
                "say that they are different networks.",
                hint="Stack only members of one architecture, or name it: --model timm:NAME.",
            )
    return f"timm:{first.arch}", dict(first.model_args)


def _describe(origin: Origin) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in origin.model_args.items())
    return f"{origin.arch!r} ({arguments})" if arguments else repr(origin.arch)


def _import_library(name: str) -> ModuleType:
    hint = "Install torch and it from the same index, or see what Python says: python -c 'import " + name + "'."
    with running_user_code(f"cannot import {name!r}", hint=hint):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in _PACKAGES:
                raise
            raise ArchitectureError(
                f"cannot look up a network: {error.name} is not installed.", hint=_INSTALL
            ) from error


def _unknown(library: str, name: str, known: Iterable[str], hint: str) -> ArchitectureError:
    return ArchitectureError(f"{library} knows no network {name!r}.{close_match(name, known)}", hint=hint)


# -- timm ------------------------------------------------------------------------------------------


def _timm_factory(name: str) -> Factory:
    timm = _import_library("timm")
    if not (re.fullmatch(r"[\w.-]+", name) and timm.is_model(name)):  # 'hf-hub:...' would ask the network
        hint = "timm.list_models() has them all; names on a hub are not looked up."
        raise _unknown("timm", name, timm.list_models(), hint)
    return functools.partial(timm.create_model, name, pretrained=False)


# -- torchvision -----------------------------------------------------------------------------------


def _torchvision_factory(name: str) -> Factory:
    _import_library("torchvision")
    models = _import_library("torchvision.models")
    known = models.list_models()
    if name not in known:
        raise _unknown("torchvision", name, known, "torchvision.models.list_models() has them all.")
    if name.startswith("quantized_"):
        plain = name.removeprefix("quantized_")
        raise ArchitectureError(
            f"cannot pack {name!r}: the members of a quantised network hold integers that cannot be stacked.",
            hint=f"Train and pack {f'torchvision:{plain}' if plain in known else 'the float network'} instead.",
        )
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    fixed: dict[str, Any] = {name: None for name in ("weights", "weights_backbone") if name in parameters}
    if name in {"googlenet", "inception_v3"}:
        fixed["init_weights"] = False  # else a warning, and half a minute spent on values that are overwritten
    return functools.partial(models.get_model, name, **fixed)


# -- transformers ----------------------------------------------------------------------------------


def _transformers_factory(folder: Path) -> Factory:
    """A factory whose arguments are values of the configuration, and `attn_implementation`."""
    values = _read_config(folder)
    transformers = _import_library("transformers")
    kind, names = values.get("model_type"), values.get("architectures") or [None]
    model_class = _model_class(transformers, names[0])
    if "auto_map" in values and (kind not in transformers.CONFIG_MAPPING or (names[0] and model_class is None)):
        raise ArchitectureError(
            f"refused {quote_path(folder / 'config.json')}: its network needs code from the folder ('auto_map'), which "
            "is never run.",
            hint="Import that code yourself: --model path/to/model.py:factory.",
        )
    if kind not in transformers.CONFIG_MAPPING:
        raise ArchitectureError(
            f"transformers knows no model_type {kind!r} ({quote_path(folder / 'config.json')})."
            f"{close_match(str(kind), transformers.CONFIG_MAPPING)}",
            hint="Install the version of transformers that the members were trained with.",
        )
    with running_user_code(f"cannot read {quote_path(folder / 'config.json')}"):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    build = transformers.AutoModel.from_config if model_class is None else model_class._from_config
    if model_class is None:
        model_class = transformers.MODEL_MAPPING.get(type(config), None)
    attention = "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"
    return functools.partial(_build_from_config, build, config, values, attention)


def _build_from_config(
    build: Factory, config: Any, values: Mapping[str, Any], attention: str, /, **changes: Any
) -> object:
    """Build the network with random weights.

    Args:
        build: Takes a configuration and `attn_implementation`.
        config: What the folder says, to know its class and its names.
        values: The folder's `config.json`.
        attention: `attn_implementation` unless `changes` says otherwise.
        changes: The user's model arguments.
    """
    attention = changes.pop("attn_implementation", attention)
    if attention not in _ATTENTION:
        expected = " or ".join(map(repr, _ATTENTION))
        raise UsageError(f"cannot use attn_implementation {attention!r}: expected {expected}.")
    unknown = [name for name in changes if not hasattr(config, name)]
    if unknown:
        names = [name for name in vars(config) if not name.startswith("_")]
        raise ArchitectureError(
            f"the configuration {type(config).__name__} has no {unknown[0]!r}.{close_match(unknown[0], names)}",
            hint="--model-args for hf: are values of config.json, or attn_implementation.",
        )
    # The key-value cache of a decoder is no tensor, and one call has no use for it.
    cache = {"use_cache": False} if hasattr(config, "use_cache") else {}
    return build(type(config).from_dict({**values, **cache, **changes}), attn_implementation=attention)


def _model_class(transformers: ModuleType, name: object) -> Any:
    """The class of that name if it is one of transformers' own networks, else None."""
    if not isinstance(name, str):
        return None
    with running_user_code(f"cannot import {name!r} from transformers"):
        found = getattr(transformers, name, None)
    is_network = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_network else None


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        seen = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        what = f"has no config.json: saw {join_some(seen) or 'nothing'}" if folder.is_dir() else "is no folder"
        raise ArchitectureError(
            f"cannot look up 'hf:' in {quote_path(folder)}: it {what}.",
            hint="Name the folder that save_pretrained wrote; names on a hub are not looked up.",
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArchitectureError(f"cannot read {quote_path(path)}: {error}.", hint="Save it again.") from error
    if not isinstance(values, dict) or not isinstance(values.get("architectures") or [], list):
        raise ArchitectureError(f"{quote_path(path)} is no configuration of transformers.", hint="Save it again.")
    cleaned: dict[str, Any] = _without_code(values, path)
    return cleaned


def _without_code(value: Any, path: Path) -> Any:
    """Leave out what could make transformers fetch code, at any depth."""
    if isinstance(value, dict):
        return {name: _without_code(item, path) for name, item in value.items() if not _names_code(name, item, path)}
    return [_without_code(item, path) for item in value] if isinstance(value, list) else value


def _names_code(name: str, value: object, path: Path) -> bool:
    """True for the attention kernel, which may name one on the hub; we choose our own.

    Raises:
        ArchitectureError: A configuration asks for trust. In some versions a nested one was obeyed.
    """
    if name == "trust_remote_code" and value:
        raise ArchitectureError(
            f"refused {quote_path(path)}: it asks for code to be trusted ('trust_remote_code').",
            hint="Only you can say that: import that code yourself, --model path/to/model.py:factory.",
        )
    return name.strip("_").startswith("attn_implementation")
