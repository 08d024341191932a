"""The command line over the settings file: what was typed wins, the file fills in the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ensexport.errors import UsageError
from ensexport.members.config import Config, find_config, load_config, parse_model_args
from ensexport.spec import Tolerance

_PROVIDERS = {"cpu": "cpu", "cuda": "cuda", "tensorrt": "tensorrt", "portable": "cpu"}


class Settings:
    """Merged settings of one command.

    Args:
        typed: Values from the command line by configuration name; None or empty means not given.
        config_path: What `--config` named.
        checkpoints: The checkpoint paths: a settings file inside one of them is never obeyed.
    """

    def __init__(self, typed: Mapping[str, Any], config_path: str | None, checkpoints: Sequence[str]) -> None:
        self.warnings: list[str] = []
        self.base_dir: Path | None = None
        file_values: Mapping[str, Any] = {}
        if config_path is not None:
            config: Config | None = load_config(config_path)
        else:
            found = find_config(Path.cwd(), checkpoint_paths=checkpoints)
            config = found.config
            self.warnings += [found.warning] if found.warning else []
        if config is not None:
            file_values = config.values
        given = {name: list(v) if isinstance(v, tuple) else v for name, v in typed.items() if v not in (None, ())}
        if config is not None and "model" not in given:
            self.base_dir = config.path.parent
        self.values: dict[str, Any] = {**file_values, **given}
        if isinstance(self.values.get("model-args"), str):
            self.values["model-args"] = parse_model_args(self.values["model-args"])

    @property
    def model(self) -> str:
        """The architecture.

        Raises:
            UsageError: None was given.
        """
        if "model" not in self.values:
            raise UsageError(
                "no architecture is given: a checkpoint holds weights, not code.",
                hint="Add --model path/to/model.py:Net, or `model = ...` to ensexport.toml.",
            )
        return str(self.values["model"])

    @property
    def tolerance(self) -> Tolerance:
        """The bound on the error."""
        return Tolerance(self.values.get("atol"), self.values.get("rtol"))

    @property
    def provider(self) -> str:
        """Where ONNX files are checked."""
        return _PROVIDERS[self.values.get("target", "portable")]

    def loading(self) -> dict[str, Any]:
        """The arguments of `load_members` that settings decide."""
        return {"model": self.model, "model_args": self.values.get("model-args"), "base_dir": self.base_dir}

    def check_emit(self) -> None:
        """Refuse anything but `members`, the one form of output there is so far."""
        emit = self.values.get("emit", "members")
        names = [part.strip() for part in emit.split(",")] if isinstance(emit, str) else list(emit)
        if names != ["members"]:
            raise UsageError(f"unknown --emit {', '.join(map(str, names))}: expected `members`.")

    def say_warnings(self, more: Sequence[str], *, quiet: bool) -> None:
        """Write warnings to stderr."""
        if not quiet:
            for warning in (*self.warnings, *more):
                click.echo(f"warning: {warning}", err=True)
