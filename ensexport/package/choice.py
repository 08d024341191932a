"""What a package folder is to hold, as the user said it. Standard library only: a misspelt name is refused early."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ensexport.errors import UsageError
from ensexport.package.manifest import is_package
from ensexport.package.triton_name import check_model_name
from ensexport.spec import FORMAT_BY_SUFFIX

LAYOUTS = ("folder", "triton")
_FORMATS = {suffix.removeprefix("."): kind for suffix, kind in FORMAT_BY_SUFFIX.items()}
_DEFAULT = {"folder": ("onnx", "torchscript"), "triton": ("onnx",)}
_FILES = {
    "folder": {"onnx": "model.onnx", "torchscript": "model.ts", "pt2": "model.pt2"},
    "triton": {"onnx": "1/model.onnx", "torchscript": "1/model.pt"},
}


@dataclass(frozen=True)
class PackageChoice:
    """How packages are made.

    Attributes:
        formats: The models they hold, `onnx`, `torchscript`, `pt2`; None for the layout's own.
        layout: `folder`, or `triton` for a model repository of Triton Inference Server.
        name: What Triton calls the model.
        labels: Names of the classes, in order; for Triton.
        keep_state: Keep the members' tensors that cannot be read back from the graph, for `extract`.
        max_batch_size: Rows of Triton's largest batch; None chooses, 0 turns batching off.

    Raises:
        UsageError: The layout is unknown, has no such format, or lacks a name.
    """

    formats: tuple[str, ...] | None = None
    layout: str = "folder"
    name: str | None = None
    labels: tuple[str, ...] | None = None
    keep_state: bool = True
    max_batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise UsageError(f"unknown --layout {self.layout!r}: expected one of {', '.join(LAYOUTS)}.")
        for kind in self.formats or ():
            if kind not in _FILES[self.layout]:
                raise UsageError(
                    f"--layout {self.layout} has no place for {kind!r}: expected {', '.join(_FILES[self.layout])}.",
                    hint="Name others with --formats.",
                )
        if self.layout == "triton" and not self.name:
            raise UsageError("--layout triton needs the model's name.", hint="Add --name NAME.")
        own = {"--name": self.name, "--labels": self.labels, "--max-batch-size": self.max_batch_size}
        given = [option for option, value in own.items() if value is not None]
        if self.layout != "triton" and given:
            raise UsageError(f"{given[0]} belongs to --layout triton.", hint="Add --layout triton.")
        if self.name is not None:
            check_model_name(self.name)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The models that a package holds."""
        return self.formats or _DEFAULT[self.layout]


DEFAULT_PACKAGE = PackageChoice()


def parse_formats(text: str | Sequence[str]) -> tuple[str, ...]:
    """Read `--formats onnx,ts`.

    Raises:
        UsageError: A name is none of `onnx`, `ts` and `pt2`.
    """
    names = [part.strip() for part in text.split(",")] if isinstance(text, str) else list(text)
    for name in names:
        if name not in _FORMATS:
            raise UsageError(f"unknown format {name!r} in --formats: expected names out of {', '.join(_FORMATS)}.")
    return tuple(dict.fromkeys(_FORMATS[name] for name in names))


def is_package_target(path: str | Path) -> bool:
    """Does an output of this name become a package? One without a suffix does."""
    return not Path(path).suffix


@dataclass(frozen=True)
class PackagePlan:
    """One package that is going to be written.

    Attributes:
        target: The folder that is put in place as a whole.
        inside: Where in it the package lies; `.` where it is the package itself.
        layout: As in `PackageChoice`.
        name: Triton's name of the model; None for layout `folder`.
        models: Format -> path of the model in the package.
    """

    target: Path
    inside: PurePosixPath
    layout: str
    name: str | None
    models: dict[str, PurePosixPath]

    @property
    def folder(self) -> Path:
        """What the package will be called."""
        return self.target / self.inside


def plan_packages(path: Path, choice: PackageChoice) -> list[PackagePlan]:
    """Say which folders an output becomes.

    A model repository may hold other models already: the model's own folder is then what is put in place, else the
    whole repository. Triton takes one model file a folder: several formats become several models.

    Args:
        path: The output as the user named it.
        choice: What to make.

    Raises:
        UsageError: A model repository is to be made in a package.
    """
    if choice.layout == "triton" and is_package(path):
        raise UsageError(f"'{path}' is a package, not a model repository.", hint="Name another folder with -o.")
    files = _FILES[choice.layout]
    if choice.layout == "folder":
        models = {kind: PurePosixPath(files[kind]) for kind in choice.kinds}
        return [PackagePlan(path, PurePosixPath(), choice.layout, None, models)]
    plans = []
    for name, kind in _model_names(choice):
        models = {kind: PurePosixPath(files[kind])}
        if path.is_dir():
            plans.append(PackagePlan(path / name, PurePosixPath(), choice.layout, name, models))
        else:
            plans.append(PackagePlan(path, PurePosixPath(name), choice.layout, name, models))
    return plans


def _model_names(choice: PackageChoice) -> Iterator[tuple[str, str]]:
    assert choice.name is not None
    for number, kind in enumerate(choice.kinds):
        yield (choice.name if number == 0 else f"{choice.name}_{kind}"), kind


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Read the names of the classes, one a line.

    Raises:
        UsageError: The file cannot be read, is not UTF-8, or holds an empty line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"cannot read --labels '{path}': {reason}.") from error
    if not lines or not all(line.strip() for line in lines):
        raise UsageError(f"cannot use --labels '{path}': expected the name of a class on each line.")
    return tuple(line.strip() for line in lines)
