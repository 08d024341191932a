"""Verifying a package: first every file is checked (`integrity`), only then the stored samples are run again.

ONNX files are data and run in ONNX Runtime, where there is no torch. TorchScript and `.pt2` files are programs that run
code when they are loaded: their bytes are checked in any case, and they are run only where that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ensexport.compare import Array
from ensexport.errors import ArtifactError, EnsexportError, ProviderError
from ensexport.members.wording import quote_path
from ensexport.memory_errors import out_of_memory
from ensexport.package.integrity import CheckedPackage, check_package
from ensexport.package.manifest import MODEL_FORMATS
from ensexport.package.sample_checks import Place, SampleCheck, check_output, mismatch
from ensexport.weighting import WEIGHTS_INPUT

ALL = "all"
_USUAL = ("cpu", "cuda")
"""Where samples are run unless others are named: TensorRT builds an engine first, which takes minutes."""
_LEVELS = ("disabled", "all")
_PROGRAM = "it is a program, which runs code when it is loaded: its bytes were checked, --trust-code runs it"
_NO_SAMPLES = "the package holds no samples, so nothing was run: its bytes were checked, its results were not"
_NOT_PROVEN = "the package was never compared with the loop over its members (packed with --validate-members none)"
_FROM_FILE = "what the samples expect is what the file itself gave when it was packed, not the loop over the members"
OnProgress = Callable[[str, int, int], None]


class _Runner(Protocol):
    provider: str
    optimization: str

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]: ...


@dataclass(frozen=True)
class NotRun:
    """A file that was checked and not run.

    Attributes:
        file: The model, below the package.
        provider: The provider that is meant; empty for all.
        reason: Why.
    """

    file: str
    provider: str
    reason: str


@dataclass(frozen=True)
class VerifyReport:
    """A package that is whole, and gives what it should.

    Attributes:
        package: What was checked.
        checks: One a file, provider, optimisation level, sample and output.
        not_run: What was not run, and why.
        warnings: What the user should know.
    """

    package: CheckedPackage
    checks: tuple[SampleCheck, ...]
    not_run: tuple[NotRun, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the answer of `verify` but for `command` and `ok`."""
        keys = ("index", "name", "sha256")
        members = [{key: member[key] for key in keys} for member in self.package.manifest["members"]]
        return {
            "package": str(self.package.path),
            "manifest_sha256": self.package.manifest_sha256,
            "files": len(self.package.manifest["files"]),
            "members": members,
            "checks": [check.to_dict() for check in self.checks],
            "not_run": [{"run": False, **asdict(entry)} for entry in self.not_run],
            "warnings": list(self.warnings),
        }


def verify_package(
    path: str | Path,
    *,
    providers: Sequence[str] = (),
    trust_code: bool = False,
    on_progress: OnProgress | None = None,
) -> VerifyReport:
    """Check a package and run its samples again.

    Args:
        path: The folder.
        providers: `cpu`, `cuda`, `tensorrt`, or `all` for those that work here; by default the CPU, and CUDA where it
            works.
        trust_code: Also load and run TorchScript and `.pt2` files.
        on_progress: Called as `(stage, done, total)`.

    Raises:
        PackageError: The package is not what its manifest says; nothing was run.
        ProviderError: A provider that was named is not there.
        ArtifactError: A file cannot be loaded or run.
        OpsetError: ONNX Runtime is older than a file.
        MismatchError: An output differs from what the sample holds, by more than the bound.
    """
    tell = on_progress or (lambda *_: None)
    package = check_package(path, on_progress=lambda done, total: tell("digest", done, total))
    manifest = package.manifest
    warnings = [] if manifest["samples"] else [_NO_SAMPLES]
    warnings += [_NOT_PROVEN] if manifest["validation"]["passed"] is None else []
    warnings += [_FROM_FILE] if any(sample["expected_from"] == "file" for sample in manifest["samples"]) else []
    checks: list[SampleCheck] = []
    not_run: list[NotRun] = []
    if manifest["samples"]:
        models = {entry["path"]: entry["format"] for entry in manifest["files"] if entry["format"] in MODEL_FORMATS}
        chosen = _choose(models, providers, not_run)
        for place, (file, kind) in enumerate(models.items()):
            tell("samples", place, len(models))
            if kind != "onnx" and not trust_code:
                not_run.append(NotRun(file, "", _PROGRAM))
                continue
            package.check_unchanged()
            for runner in _runners(package.path / file, kind, chosen, manifest):
                checks += _run_samples(package, file, kind, runner)
                del runner  # before the next one is made: two would hold the weights twice
        package.check_unchanged()
    failed = [check for check in checks if not check.passed]
    if failed:
        error = mismatch(package, failed[0])
        error.details |= {"n_failed": len(failed), "n_checks": len(checks)}
        error.details["checks"] = [check.to_dict() for check in checks]
        raise error
    return VerifyReport(package, tuple(checks), tuple(not_run), tuple(warnings))


def _choose(models: Mapping[str, str], providers: Sequence[str], not_run: list[NotRun]) -> list[str]:
    """The providers to run on; one that was named must be there, and of the others it is said why they are not."""
    named = [provider for provider in dict.fromkeys(providers) if provider != ALL]
    if "onnx" not in models.values():
        return named if named and ALL not in providers else [*named, "cpu"]
    from ensexport.runtime.onnx_runner import check_provider, offered_providers

    for provider in named:
        check_provider(provider)
    chosen = list(named)
    offered = offered_providers()
    tried = offered if ALL in providers else [] if named else [name for name in _USUAL if name in offered]
    for provider in tried:
        try:
            check_provider(provider)
        except ProviderError as error:
            if ALL in providers:
                not_run += [NotRun(file, provider, error.message) for file, kind in models.items() if kind == "onnx"]
        else:
            chosen.append(provider)
    return list(dict.fromkeys(chosen))


def _runners(path: Path, kind: str, providers: Sequence[str], manifest: Mapping[str, Any]) -> Iterator[_Runner]:
    """The file in every way it is checked, one after the other."""
    if kind == "onnx":
        from ensexport.runtime.onnx_runner import OnnxRunner, options_for

        for provider in providers:
            for level in _LEVELS:
                yield OnnxRunner(path, provider=provider, optimization=level, options=options_for(path))
        return
    from ensexport.runtime.torch_runner import ExportedRunner, ScriptRunner

    names = tuple(entry["name"] for entry in manifest["outputs"])
    runner = ScriptRunner if kind == "torchscript" else ExportedRunner
    for provider in dict.fromkeys("cpu" if provider == "cpu" else "cuda" for provider in providers):
        yield runner(path, provider=provider, output_names=names)


def _run_samples(package: CheckedPackage, file: str, kind: str, runner: _Runner) -> Iterator[SampleCheck]:
    manifest = package.manifest
    for sample in manifest["samples"]:
        place = Place(file, runner.provider, runner.optimization, sample["folder"])
        given = {entry["name"]: package.arrays[entry["path"]] for entry in sample["inputs"]}
        feed = {entry["name"]: given[entry["name"]] for entry in manifest["inputs"] if entry["name"] in given}
        if kind == "pt2" and manifest["member_weights"] == "input" and WEIGHTS_INPUT not in feed:
            feed[WEIGHTS_INPUT] = np.ones(manifest["n_members"], np.float32)  # what the other formats have as default
        try:
            results = runner.run(feed)
        except Exception as error:
            if isinstance(error, EnsexportError) or out_of_memory(error) is not None:
                raise
            text = " ".join(str(error).split())[:300]
            raise ArtifactError(
                f"cannot run {quote_path(package.path / file)} ({place}): {text}",
                hint="The file is whole: look at the versions that the manifest names under `libraries`.",
            ) from error
        for output in sample["outputs"]:
            expected, actual = package.arrays[output["path"]], results.get(output["name"])
            yield check_output(place, output, expected, actual)
