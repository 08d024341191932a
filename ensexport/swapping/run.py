"""The job of `ensexport swap`: read, compute one member's bytes, write them into a copy, prove it, put it in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ensexport.clock import Clock, OnStage
from ensexport.errors import UsageError
from ensexport.members import Members, Selection, Trust, load_members
from ensexport.members.selection import NO_SELECTION
from ensexport.members.trust import NO_TRUST
from ensexport.members.widening import as_wide, saved_dtypes_json
from ensexport.output_files import data_file, describe_artifact
from ensexport.recipe.coding import KEY
from ensexport.resources import check_disk
from ensexport.runtime import member_specs
from ensexport.spec import Artifact, Tolerance, ValidationReport, artifact_format
from ensexport.staging import Staging, writing
from ensexport.swapping.contents import Contents, read_contents
from ensexport.swapping.patching import write_patched
from ensexport.swapping.pieces import NewMember, Patch, build_member, make_patches
from ensexport.swapping.proving import prove_member


@dataclass(frozen=True)
class SwapFile:
    """One file whose member is replaced.

    Attributes:
        source: The file as it is.
        staged: Where the new one is written; external data goes beside it, as `NAME.data`.
        target: What it will be called.
    """

    source: Path
    staged: Path
    target: Path


@dataclass(frozen=True)
class Swapped:
    """What was done to some files.

    Attributes:
        member: What the files say of the new member: `index`, `name`, `sha256`, `weights_sha256`.
        replaced: What they said of the old one.
        metadata: What each file says of itself now.
        validation: The comparison of the new member with the loop.
        warnings: What the user should know.
    """

    member: Mapping[str, Any]
    replaced: Mapping[str, Any]
    metadata: Sequence[Mapping[str, Any]]
    validation: ValidationReport
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class SwapReport:
    """The result of `swap`.

    Attributes:
        artifact: The file that was read.
        members: The new checkpoint, as it was loaded.
        swapped: What was done.
        artifacts: What was written.
        timings_s: Seconds per stage.
        peak_bytes: The most resident memory per stage.
    """

    artifact: str
    members: Members
    swapped: Swapped
    artifacts: tuple[Artifact, ...]
    timings_s: Mapping[str, float]
    peak_bytes: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the body of the JSON contract for `swap`."""
        new, replaced = self.members[0], self.swapped.replaced
        names = ("name", "sha256", "weights_sha256")
        return {
            "artifact": self.artifact,
            "member": {
                "index": self.swapped.member["index"],
                "path": new.path,
                "name": self.swapped.member["name"],
                "sha256": new.sha256,
                "weights_sha256": new.weights_sha256,
                "container_key": new.container_key,
                "stripped_prefix": new.stripped_prefix,
                "replaced": {name: replaced.get(name, "") for name in names},
            },
            "artifacts": [asdict(artifact) for artifact in self.artifacts],
            "validation": self.swapped.validation.to_dict(),
            "timings_s": {stage: round(seconds, 4) for stage, seconds in self.timings_s.items()},
            "peak_memory_mb": {stage: round(size / 1e6, 1) for stage, size in self.peak_bytes.items()},
            "warnings": list(self.swapped.warnings),
        }


def swap(
    artifact: str | Path,
    member_index: int,
    checkpoint: str | Path,
    output: str | Path,
    *,
    model: str | Callable[..., Any],
    model_args: Mapping[str, Any] | None = None,
    base_dir: str | Path | None = None,
    selection: Selection = NO_SELECTION,
    trust: Trust = NO_TRUST,
    allow_nonfinite: bool = False,
    tolerance: Tolerance | None = None,
    provider: str = "cpu",
    force: bool = False,
    on_stage: OnStage | None = None,
) -> SwapReport:
    """Write a copy of a packed file in which one member is another checkpoint, and prove it.

    The graph stays as it is, and so do the other members' bytes; what was folded into the member's weights is folded
    anew. The number of members is part of the graph: none can be added or taken away.

    Args:
        artifact: An `.onnx`, `.ts` or `.pt2` file that ensexport wrote.
        member_index: The member to replace, from 0.
        checkpoint: The file or folder with its new weights.
        output: The file to write, of the same suffix; the artifact itself with `force`.
        model: The architecture, as for `load_members`.
        model_args: Its keyword arguments.
        base_dir: What a relative path in `model` is relative to.
        selection: Where in the checkpoint the weights lie.
        trust: What may run code.
        allow_nonfinite: Take a member that holds NaN or Inf, with a warning.
        tolerance: The bound.
        provider: Where ONNX files are checked: `cpu`, `cuda` or `tensorrt`.
        force: Replace a file that exists.
        on_stage: Called as `(stage, done, total)`.

    Raises:
        UsageError: There is no such member, or the output has another suffix.
        ArtifactError: The file is damaged, or carries no recipe.
        MemberError: The checkpoint does not fit the members of the file.
        MismatchError: The new member differs from the loop; nothing is written.
        OutputError: The output exists or cannot be written.
    """
    source, target = Path(artifact), Path(output)
    if artifact_format(source) != artifact_format(target):
        raise UsageError(f"cannot write '{target}': expected the format of '{source}', {source.suffix}.")
    base, clock = Path.cwd(), Clock(on_stage)
    with Staging([target], force=force) as staging:
        with clock.stage("read"):
            contents = read_contents(source)
            check_index(member_index, contents.n_members, source)
        if contents.kind == "onnx" and provider != "cpu":
            from ensexport.runtime.onnx_runner import check_provider

            check_provider(provider)  # before the work, not after
        with clock.stage("load"):
            members = load_members(
                checkpoint,
                model,
                model_args=model_args,
                base_dir=base_dir,
                selection=selection,
                trust=trust,
                allow_nonfinite=allow_nonfinite,
                any_float="dtypes" in contents.metadata,
                on_progress=lambda _path, done, total: clock.tell("load", done, total),
            )
        if Path.cwd() != base:  # the model's code changed it
            source, contents = base / source, read_contents(base / source)
        file = SwapFile(source, staging.path(target), target)
        swapped = swap_files(
            [file], member_index, members, tolerance=tolerance, provider=provider, clock=clock, known=[contents]
        )
        with clock.stage("digest"):
            artifacts = tuple(
                describe_artifact(staged, path, kind, lambda done: clock.tell("digest", done, 0))
                for staged, path, kind in written_files(file)
            )
        with clock.stage("write"):
            staging.commit()
    return SwapReport(str(artifact), members, swapped, artifacts, clock.seconds, clock.peak_bytes)


def swap_files(
    files: Sequence[SwapFile],
    member_index: int,
    members: Members,
    *,
    tolerance: Tolerance | None = None,
    provider: str = "cpu",
    clock: Clock | None = None,
    known: Sequence[Contents] | None = None,
) -> Swapped:
    """Write the new files of one ensemble where they are staged, and prove them. Nothing is put in place.

    Args:
        files: Files of the same members, of any formats.
        member_index: The member to replace, from 0.
        members: The new checkpoint alone, loaded with its architecture (`any_float` where the files have `dtypes`).
        tolerance: The bound.
        provider: Where ONNX files are checked.
        clock: Is told of the stages.
        known: What the files hold, where they were read before.

    Raises:
        UsageError: There is no such member, or not one checkpoint.
        EnsexportError: See `swap`.
    """
    clock = clock or Clock()
    held = list(known) if known is not None else [read_contents(file.source) for file in files]
    for file, contents in zip(files, held, strict=True):
        check_index(member_index, contents.n_members, file.source)
    if len(members) != 1:
        raise UsageError(f"{len(members)} members were found in the checkpoint: expected one to put into the file.")
    check_disk({file.target: _size(contents) for file, contents in zip(files, held, strict=True)})
    with clock.stage("weights"):
        if "dtypes" in held[0].metadata:  # as `pack --dtype` takes members that were saved in different ones
            members = as_wide(members, held[0].recipe.dtypes)
        new = build_member(members, member_specs(held[0].metadata), held[0].recipe, member_index)
        record = _record(new, held[0].metadata["members"])
        replaced = held[0].metadata["members"][member_index]
        done: dict[str, list[Patch]] = {}
        changed: list[dict[str, Any]] = []
        for file, contents in zip(files, held, strict=True):
            recipe = contents.metadata[KEY]
            if recipe not in done or contents.n_members == 1:
                done[recipe] = make_patches(contents, new)
            records = list(contents.metadata["members"])
            records[member_index] = record
            changed.append({**contents.metadata, "members": records})
            with writing(file.target):
                write_patched(contents, file.staged, file.target.name, done[recipe], changed[-1])
    with clock.stage("validate"):
        report, notes = prove_member(
            [(contents, file.staged, str(file.target)) for file, contents in zip(files, held, strict=True)],
            new,
            tolerance=tolerance or Tolerance(),
            provider=provider,
        )
    warnings = (*members.warnings, *_repeats(record, held[0].metadata["members"]), *notes)
    return Swapped(record, replaced, changed, report, warnings)


def check_index(member_index: int, n_members: int, path: Path) -> None:
    """Refuse a member that is not there.

    Raises:
        UsageError: It is not.
    """
    if not 0 <= member_index < n_members:
        raise UsageError(
            f"there is no member {member_index} in '{path}': expected 0 to {n_members - 1}.",
            hint="A file's number of members is fixed: pack again to have more.",
        )


def written_files(file: SwapFile) -> list[tuple[Path, Path, str]]:
    """What was written for a file: where it is staged, what it will be called, and its format."""
    files = [(file.staged, file.target, artifact_format(file.target))]
    if files[0][2] == "onnx" and data_file(file.staged).exists():
        files.append((data_file(file.staged), data_file(file.target), "onnx_data"))
    return files


def _size(contents: Contents) -> int:
    beside = contents.places.data if contents.places is not None else ()
    return sum(path.stat().st_size for path in (contents.path, *beside))


def _record(new: NewMember, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a file says of the new member; its name has as many parts of the path as the others' have."""
    member = new.members[0]
    others = [str(record.get("name", "")) for record in records if record["index"] != new.index]
    parts = [part for part in Path(member.path).parts if part != "/"]
    least = max((name.count("/") + 1 for name in others), default=1)
    names = ["/".join(parts[-count:]) for count in range(least, len(parts) + 1)] or ["/".join(parts)]
    name = next((name for name in names if name not in others), names[-1])
    digests = {"sha256": member.sha256, "weights_sha256": member.weights_sha256}
    return {"index": new.index, "name": name, **digests, **saved_dtypes_json(member)}


def _repeats(record: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which other member holds the same weights."""
    digest = record["weights_sha256"]
    same = [r["index"] for r in records if r["index"] != record["index"] and r.get("weights_sha256") == digest]
    return [f"members {record['index']} and {same[0]} hold identical weights now."] if same else []
