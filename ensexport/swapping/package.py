"""Swapping a member of a whole package: all of its models, its samples, the tensors kept for `extract`, its manifest.

The package is checked first: a manifest that is written anew must not vouch for bytes that the old one did not know.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensexport.clock import Clock, OnStage
from ensexport.compare import Array, is_exact
from ensexport.dtypes import Conversion
from ensexport.emission import OutputEmission, from_json
from ensexport.errors import MismatchError, UsageError
from ensexport.members import Members, load_members
from ensexport.package.cases import SampleCase, is_within, rounding_of
from ensexport.package.choice import is_package_target
from ensexport.package.contents import created, libraries, member_entry, sample_entry, validation_entry
from ensexport.package.integrity import CheckedPackage, check_package
from ensexport.package.manifest import MODEL_FORMATS
from ensexport.package.samples import write_sample
from ensexport.package.writing import finish_package
from ensexport.recipe.own_tensors import state_of
from ensexport.recipe.state_file import STATE_FILE, patch_kept
from ensexport.runtime import open_runners
from ensexport.runtime.torch_runner import array_from_tensor, tensor_from_array
from ensexport.spec import SUFFIX_BY_FORMAT, Artifact, Tolerance
from ensexport.stacking.baseline import run_member
from ensexport.staging import Staging, writing
from ensexport.swapping.run import SwapFile, Swapped, SwapReport, check_index, swap_files


def swap_package(
    artifact: str | Path,
    member_index: int,
    checkpoint: str | Path,
    output: str | Path,
    *,
    tolerance: Tolerance | None = None,
    provider: str = "cpu",
    force: bool = False,
    on_stage: OnStage | None = None,
    **loading: Any,
) -> SwapReport:
    """Write a copy of a package in which one member is another checkpoint, and prove it; see `swap`.

    Args:
        artifact: A folder that `pack` wrote.
        member_index: The member to replace, from 0.
        checkpoint: The file or folder with its new weights.
        output: The folder to write; the package itself with `force`.
        tolerance: The bound.
        provider: Where ONNX files are checked.
        force: Replace a package that exists.
        on_stage: Called as `(stage, done, total)`.
        loading: How the checkpoint is read, as for `swap`: `model` and more.

    Raises:
        PackageError: The package is not what its manifest says.
        EnsexportError: As for `swap`.
    """
    source, target = Path(artifact), Path(output)
    if not is_package_target(target):
        raise UsageError(
            f"cannot write '{target}': expected a folder, as '{source}' is one.", hint="Leave out the suffix."
        )
    clock = Clock(on_stage)
    with clock.stage("read"):
        package = check_package(source, on_progress=lambda done, total: clock.tell("read", done, total))
    is_triton = package.manifest["layout"] == "triton"
    if is_triton and target.name != package.manifest["name"]:
        raise UsageError(
            f"cannot write '{target}': expected a folder '{package.manifest['name']}', as Triton wants the name of the "
            "model in its configuration.",
            hint=f"Add it: -o {target / package.manifest['name']}.",
        )
    with Staging([], folders=[target], watched=[target.parent] if is_triton else [], force=force) as staging:
        with clock.stage("read"):
            check_index(member_index, package.manifest["n_members"], source)
        with clock.stage("load"):
            members = load_members(
                checkpoint,
                **loading,
                any_float=package.manifest["dtypes"] is not None,
                on_progress=lambda _path, done, total: clock.tell("load", done, total),
            )
        scratch = staging.scratch(target)
        scratch.mkdir()
        making = PackageSwap(package, staging.path(target), target, scratch, member_index, members)
        swapped, artifacts = making.run(tolerance=tolerance, provider=provider, clock=clock)
        package.check_unchanged()
        with clock.stage("write"):
            staging.commit()
    return SwapReport(str(artifact), members, swapped, tuple(artifacts), clock.seconds, clock.peak_bytes)


@dataclass(frozen=True)
class PackageSwap:
    """One package that is being written anew with another member.

    Attributes:
        package: The old one, checked.
        folder: Where the new one is made; empty.
        shown: What it will be called.
        scratch: A folder for copies, removed by the caller.
        member_index: The member to replace.
        members: The new checkpoint alone.
    """

    package: CheckedPackage
    folder: Path
    shown: Path
    scratch: Path
    member_index: int
    members: Members

    def run(self, *, tolerance: Tolerance | None, provider: str, clock: Clock) -> tuple[Swapped, list[Artifact]]:
        """Write and prove all of it; the caller puts it in place.

        Args:
            tolerance: The bound.
            provider: Where ONNX files are run.
            clock: Is told of the stages.

        Raises:
            EnsexportError: As for `swap`.
        """
        manifest = self.package.manifest
        formats = {entry["path"]: entry["format"] for entry in manifest["files"]}
        models = {path: kind for path, kind in formats.items() if kind in MODEL_FORMATS}
        files = [self._swap_file(path, kind) for path, kind in models.items()]
        swapped = swap_files(
            files, self.member_index, self.members, tolerance=tolerance, provider=provider, clock=clock
        )
        with clock.stage("package"), writing(self.shown):
            samples = self._samples(files[0], swapped, provider)
            for file, path in zip(files, models, strict=True):
                file.staged.rename(self.folder / path)
            written = {*models, *(path for path, kind in formats.items() if kind in ("onnx_data", "sample", "card"))}
            for path in formats.keys() - written:
                (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.package.path / path, self.folder / path)
            if STATE_FILE in formats:
                patch_kept(self.folder / STATE_FILE, self.member_index, self._own_state())
            new = self._manifest(samples, swapped, {str(self.shown / path): path for path in models})
            tell = functools.partial(clock.tell, "package")
            return swapped, finish_package(self.folder, self.shown, new, formats, tell)

    def _swap_file(self, path: str, kind: str) -> SwapFile:
        """Where a model is read and written; by the suffix that tells its format, which Triton's name does not."""
        source, staged = self.package.path / path, self.folder / path
        staged.parent.mkdir(parents=True, exist_ok=True)
        suffix = SUFFIX_BY_FORMAT[kind]
        if source.suffix != suffix:
            copy = self.scratch / f"model{suffix}"
            with writing(self.shown):
                shutil.copyfile(source, copy)
            return SwapFile(copy, staged.with_suffix(suffix), self.shown / path)
        return SwapFile(source, staged, self.shown / path)

    def _own_state(self) -> dict[str, torch.Tensor]:
        """The new member's tensors by the names of its checkpoint; what that lacks is as the network was built."""
        built = {name: tensor.detach() for name, tensor in self.members.build(0).state_dict().items()}
        return {**built, **state_of(self.members, 0)}

    def _manifest(
        self, samples: Sequence[Mapping[str, Any]], swapped: Swapped, names: Mapping[str, str]
    ) -> dict[str, Any]:
        old = self.package.manifest
        member = member_entry(swapped.member, self.members[0])
        members = [member if entry["index"] == self.member_index else entry for entry in old["members"]]
        replaced = {name: str(swapped.replaced.get(name, "")) for name in ("name", "sha256", "weights_sha256")}
        swap = {
            "member_index": self.member_index,
            "name": swapped.member["name"],
            "replaced": replaced,
            "validation": validation_entry(swapped.validation, names),
        }
        date = created()
        made = {
            **old,
            "libraries": libraries(),
            "members": members,
            "samples": list(samples),
            "swaps": [*old["swaps"], swap],
        }
        made.pop("created", None)
        return made if date is None else {**made, "created": date}

    # -- samples -----------------------------------------------------------------------------------

    def _samples(self, file: SwapFile, swapped: Swapped, provider: str) -> list[dict[str, Any]]:
        """The same inputs, and what comes out now."""
        manifest = self.package.manifest
        names = tuple(entry["name"] for entry in manifest["outputs"])
        emitted = from_json(manifest["emit"], names)
        entries: list[dict[str, Any]] = []
        if not manifest["samples"]:
            return entries
        *_, runner = open_runners(file.staged, provider=provider, output_names=names)
        for sample in manifest["samples"]:
            inputs = {entry["name"]: self.package.arrays[entry["path"]] for entry in sample["inputs"]}
            own = {name: array for name, array in runner.run(inputs).items() if name in names}
            case = self._case(sample, inputs, own, emitted, swapped)
            write_sample(self.folder / sample["folder"], case.inputs, case.outputs)
            entries.append(sample_entry(sample["folder"], case))
        return entries

    def _case(
        self,
        sample: Mapping[str, Any],
        inputs: Mapping[str, Array],
        own: Mapping[str, Array],
        emitted: Sequence[OutputEmission],
        swapped: Swapped,
    ) -> SampleCase:
        axes = {entry["name"]: entry["member_axis"] for entry in sample["outputs"]}
        bounds = {}
        for entry in sample["outputs"]:
            name = entry["name"]
            found = [check.bound for check in swapped.validation.checks if check.output == name]
            rounding = rounding_of(str(own[name].dtype)) if entry["bound"] else 0.0
            bounds[name] = max([entry["bound"], *(bound + rounding for bound in found if np.isfinite(bound))])
        expected: dict[str, Array] = {}
        if sample["expected_from"] == "loop" and None not in axes.values():
            expected = self._expected(sample, inputs, axes, emitted)
        off = [n for n in expected if not is_within(expected[n], own[n], bound=bounds[n], axis=axes[n])]
        wrong = next((name for name in off if not is_exact(own[name].dtype)), None)
        if wrong is not None:
            raise MismatchError(
                f"output '{wrong}' of '{self.shown}' differs from the baseline on the stored sample "
                f"'{sample['folder']}': expected the loop over {self.members[0].path} within {bounds[wrong]:.3g} of "
                "the largest value, got more.",
                hint="If the member itself is right and this is rounding, --rtol or --atol sets the bound.",
                member_index=self.member_index,
                output=wrong,
            )
        is_loop = bool(expected) and not off
        return SampleCase(
            sample["source"],
            "loop" if is_loop else "file",
            sample["batch"],
            inputs,
            expected if is_loop else own,
            bounds,
            axes,
        )

    def _expected(
        self,
        sample: Mapping[str, Any],
        inputs: Mapping[str, Array],
        axes: Mapping[str, int],
        emitted: Sequence[OutputEmission],
    ) -> dict[str, Array]:
        """The stored outputs, with the new member's own in float64 in its place."""
        manifest = self.package.manifest
        per_member = {entry["name"] for entry in manifest["inputs"] if entry["is_per_member"]}
        optional = {entry["name"] for entry in manifest["inputs"] if entry["is_optional"]}
        conversion = Conversion.from_json(manifest["dtypes"])
        feed = {}
        for name, array in inputs.items():
            if name in optional:
                continue
            tensor = tensor_from_array(array[self.member_index] if name in per_member else array)
            is_converted = conversion is not None and str(tensor.dtype) == f"torch.{conversion.io}"
            feed[name] = tensor.to(getattr(torch, conversion.members)) if conversion and is_converted else tensor
        exact = run_member(self.members.build(0), feed, dtype=torch.float64)
        own = dict(zip((entry.output for entry in emitted), exact.values(), strict=True))
        found = {}
        for entry in sample["outputs"]:
            name = entry["name"]
            stored = np.array(self.package.arrays[entry["path"]])
            slot = np.moveaxis(stored, axes[name], 0)[self.member_index]
            value = array_from_tensor(own[name])
            if value.shape != slot.shape:
                return {}
            slot[...] = value.astype(stored.dtype)
            found[name] = stored
        return found
