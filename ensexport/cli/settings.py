"""The command line over the settings file: what was typed wins, the file fills in the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ensexport.choice import MemberChoice, parse_choice
from ensexport.dtypes import DtypeChoice
from ensexport.emission import parse_emission
from ensexport.errors import UsageError
from ensexport.members.config import Config, find_config, load_config, parse_model_args
from ensexport.members.selection import Selection
from ensexport.members.trust import Trust
from ensexport.package.choice import PackageChoice, parse_formats, read_labels
from ensexport.spec import Tolerance, parse_inputs
from ensexport.weighting import MemberWeights, parse_member_weights

_PROVIDERS = {"cpu": "cpu", "cuda": "cuda", "tensorrt": "tensorrt", "portable": "cpu"}


class Settings:
    """Merged settings of one command.

    Args:
        typed: Values from the command line by parameter name (`model_args`); None or empty means not given.
        config_path: What `--config` named.
        checkpoints: The checkpoint paths: a settings file inside one of them is never obeyed.

    Raises:
        ConfigError: The settings file cannot be read.
        UsageError: A typed value is malformed.
    """

    def __init__(self, typed: Mapping[str, Any], config_path: str | None, checkpoints: Sequence[str]) -> None:
        self.warnings: list[str] = []
        config = load_config(config_path) if config_path is not None else self._found(checkpoints)
        named = {name.replace("_", "-"): list(v) if isinstance(v, tuple) else v for name, v in typed.items()}
        given = {name: value for name, value in named.items() if not (value is None or value is False or value == [])}
        self.values: dict[str, Any] = {**(config.values if config else {}), **given}
        self.base_dir = config.path.parent if config and "model" not in given else None
        self._files_dir = config.path.parent if config and "member-weights" not in given else Path()
        self._samples_dir = config.path.parent if config and "sample-inputs" not in given else Path()
        self._labels_dir = config.path.parent if config and "labels" not in given else Path()
        if isinstance(self.values.get("model-args"), str):
            self.values["model-args"] = parse_model_args(self.values["model-args"])

    def _found(self, checkpoints: Sequence[str]) -> Config | None:
        found = find_config(Path.cwd(), checkpoint_paths=checkpoints)
        self.warnings += [found.warning] if found.warning else []
        return found.config

    @property
    def provider(self) -> str:
        """Where ONNX files are run."""
        return str(self.values.get("provider") or _PROVIDERS[self.values.get("target", "portable")])

    @property
    def tolerance(self) -> Tolerance:
        """The bound on the error."""
        return Tolerance(self.values.get("atol"), self.values.get("rtol"))

    def loading(self) -> dict[str, Any]:
        """The arguments of `load_members` that settings decide.

        Raises:
            UsageError: No architecture was given.
        """
        if "model" not in self.values:
            raise UsageError(
                "no architecture is given: a checkpoint holds weights, not code.",
                hint="Add --model path/to/model.py:Net, or `model = ...` to ensexport.toml.",
            )
        return {"model": str(self.values["model"]), **self.reading()}

    def reading(self) -> dict[str, Any]:
        """The arguments of `load_members` without the architecture's name."""
        return {
            "model_args": self.values.get("model-args"),
            "base_dir": self.base_dir,
            "selection": Selection(self.values.get("weights"), self.values.get("key"), self.values.get("strip-prefix")),
            "trust": Trust(bool(self.values.get("allow-pickle")), bool(self.values.get("trust-code"))),
            "allow_nonfinite": bool(self.values.get("allow-nonfinite")),
        }

    def packing(self) -> dict[str, Any]:
        """The arguments of `pack` that settings decide.

        Raises:
            UsageError: One is missing, malformed, or asks for what this version does not do.
        """
        names = _texts(self.values.get("output-names", []))
        if not all(names):
            raise UsageError(f"cannot read --output-names {self.values['output-names']!r}: a name is empty.")
        return {
            **self.loading(),
            "inputs": parse_inputs(self.values.get("inputs", ())),
            "per_member": self.values.get("per-member", ()),
            "member_axis": self.values.get("member-axis", self._default_member_axis),
            "opset": self.values.get("opset"),
            "target": self.values.get("target", "portable"),
            "provider": self.provider,
            "strategy": self.values.get("strategy", "auto"),
            "tune_batches": self._tune_batches(),
            "output_names": names or None,
            "emission": parse_emission(self.values.get("emit", ()), self.values.get("class-axis", ())),
            "weights": self._weights(),
            "dtypes": DtypeChoice(self.values.get("dtype"), self.values.get("io-dtype")),
            "tolerance": self.tolerance,
            "choice": self.choice,
            "package": self._package(),
            "external_data": bool(self.values.get("external-data")),
            "sample_inputs": self._sample_inputs(),
        }

    @property
    def _default_member_axis(self) -> int:
        """Triton batches on axis 0."""
        return int(self.values.get("layout") == "triton")

    def _sample_inputs(self) -> Path | None:
        given = self.values.get("sample-inputs")
        return None if given is None else self._samples_dir / given

    def _package(self) -> PackageChoice:
        formats, labels = self.values.get("formats"), self.values.get("labels")
        return PackageChoice(
            formats=None if formats is None else parse_formats(formats),
            layout=self.values.get("layout", "folder"),
            name=self.values.get("name"),
            labels=None if labels is None else read_labels(self._labels_dir / labels),
            keep_state=not self.values.get("no-state"),
            max_batch_size=self.values.get("max-batch-size"),
        )

    @property
    def choice(self) -> MemberChoice:
        """The members to compare with the loop.

        Raises:
            UsageError: `--validate-members` cannot be read.
        """
        return parse_choice(str(self.values.get("validate-members", "all")))

    def _weights(self) -> MemberWeights | None:
        given = self.values.get("member-weights")
        return None if given is None else parse_member_weights(given, self._files_dir)

    def _tune_batches(self) -> list[int]:
        given = self.values.get("tune-batch", "1,8")
        return positive_integers(given if isinstance(given, str) else ",".join(map(str, given)), "--tune-batch")

    def say_warnings(self, more: Sequence[str], *, quiet: bool) -> None:
        """Write warnings to stderr."""
        if not quiet:
            for warning in (*self.warnings, *more):
                click.echo(f"warning: {warning}", err=True)


def positive_integers(text: str, option: str) -> list[int]:
    """Read `1,8,64`.

    Raises:
        UsageError: An entry is no positive integer.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,8}", part) for part in parts):
        raise UsageError(f"cannot read {option} {text!r}: expected positive integers like 1,8,64.")
    return [int(part) for part in parts]


def _texts(value: str | Sequence[str]) -> list[str]:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)
