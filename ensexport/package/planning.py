"""What is going to be written: files, and packages with the files in them. Loads no torch: it is said early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ensexport.errors import UsageError
from ensexport.output_files import Output
from ensexport.package.choice import PackageChoice, PackagePlan, is_package_target, plan_packages
from ensexport.spec import SUFFIX_BY_FORMAT, artifact_format
from ensexport.staging import Staging


@dataclass(frozen=True)
class OutputPlan:
    """All that one run writes.

    Attributes:
        files: Single files.
        packages: Package folders.
    """

    files: tuple[Path, ...]
    packages: tuple[PackagePlan, ...]

    @property
    def formats(self) -> list[str]:
        """The format of each model file, those in packages too."""
        return [*map(artifact_format, self.files), *(kind for plan in self.packages for kind in plan.models)]

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that are put in place as a whole."""
        return tuple(dict.fromkeys(plan.target for plan in self.packages))

    @property
    def watched(self) -> tuple[Path, ...]:
        """Folders that a server may be reading while this run writes into them."""
        return tuple(
            dict.fromkeys(p.target.parent for p in self.packages if p.layout == "triton" and p.target.name == p.name)
        )

    def staging(self, *, force: bool) -> Staging:
        """The writer of all this; refuses targets that cannot be written."""
        return Staging(self.files, folders=self.folders, watched=self.watched, force=force)

    def outputs(self, staging: Staging) -> list[Output]:
        """Where the model files are written, and what they will be called; makes the folders they need."""
        outputs = [Output(artifact_format(path), staging.path(path), path) for path in self.files]
        for plan in self.packages:
            for kind, name in plan.models.items():
                staged = staging.path(plan.target) / plan.inside / name
                staged.parent.mkdir(parents=True, exist_ok=True)
                outputs.append(Output(kind, staged.with_suffix(SUFFIX_BY_FORMAT[kind]), plan.folder / name))
        return outputs


def plan_outputs(targets: Sequence[Path], choice: PackageChoice) -> OutputPlan:
    """Say what each output becomes.

    Args:
        targets: As the user named them; one without a suffix becomes a package, or several.
        choice: What packages are to hold.

    Raises:
        UsageError: A suffix is unknown, or there is no output.
    """
    if not targets:
        raise UsageError("no output is named.", hint="Add -o ensemble.onnx.")
    files = [path for path in targets if not is_package_target(path)]
    for path in files:
        artifact_format(path)
    packages = [plan for path in targets if is_package_target(path) for plan in plan_packages(path, choice)]
    return OutputPlan(tuple(files), tuple(packages))
