"""`ensexport validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ensexport.cli import options
from ensexport.cli.invocation import Invocation
from ensexport.cli.members_text import members_lines
from ensexport.cli.settings import Settings
from ensexport.cli.streams import write_json
from ensexport.cli.text import MOST_MEMBERS, validation_lines
from ensexport.members.discovery import find_checkpoints
from ensexport.package.resolving import artifact_files


@click.command(
    "validate",
    short_help="Compare an artifact with the loop over its checkpoints.",
    epilog=options.example("ensexport validate ensemble.onnx ckpts/ --model model.py:Net"),
)
@options.apply(
    options.artifact,
    options.checkpoints,
    *options.loading,
    options.config,
    options.target,
    options.atol,
    options.rtol,
    options.validate_members,
    options.as_json,
)
@click.pass_obj
def command(obj: Invocation, /, artifact: str, checkpoints: tuple[str, ...], config: str | None, as_json: bool,
            **typed: Any) -> None:  # fmt: skip
    """Compare ARTIFACT with the loop over the checkpoints CKPTS..., every member, several batch sizes.

    Of a package folder every model is compared.
    """
    settings = Settings(typed, config, checkpoints)
    loading = settings.loading()
    files = artifact_files(artifact)
    find_checkpoints(checkpoints)
    with obj.working() as listen:
        from ensexport.members import load_members
        from ensexport.packing import members_dict
        from ensexport.runtime import read_metadata
        from ensexport.validation import joined, validate

        members = load_members(list(checkpoints), **loading, any_float="dtypes" in read_metadata(Path(files[0])),
                               on_progress=lambda _path, *count: listen("load", *count))  # fmt: skip
        report = joined(validate(file, members, tolerance=settings.tolerance, provider=settings.provider,
                                 choice=settings.choice, on_progress=listen) for file in files)  # fmt: skip
    settings.say_warnings(members.warnings, quiet=obj.quiet)
    warnings = [*settings.warnings, *members.warnings]
    answer = {"command": "validate", "ok": True, "artifact": artifact, **members_dict(members),
              "validation": report.to_dict(), "warnings": warnings}  # fmt: skip
    text = "\n".join([*members_lines(answer, most=MOST_MEMBERS), *validation_lines(answer["validation"])])
    write_json(answer) if as_json else click.echo(text)
