"""`ensexport validate`."""

from __future__ import annotations

import json
from typing import Any

import click

from ensexport.cli import options
from ensexport.cli.progress import progress
from ensexport.cli.root import stdout_for_the_answer
from ensexport.cli.settings import Settings
from ensexport.cli.text import members_lines, validation_lines
from ensexport.spec import artifact_format


@click.command("validate", short_help="Compare an artifact with the loop over its checkpoints.")
@options.apply(
    options.artifact,
    options.checkpoints,
    options.model,
    options.model_args,
    options.config,
    options.target,
    options.atol,
    options.rtol,
    options.as_json,
)
@click.pass_obj
def command(
    obj: dict[str, bool],
    /,
    artifact: str,
    checkpoints: tuple[str, ...],
    config: str | None,
    as_json: bool,
    **typed: Any,
) -> None:
    """Compare ARTIFACT with the loop over the checkpoints CKPTS..., every member, several batch sizes.

    Example: ensexport validate ensemble.onnx ckpts/ --model model.py:Net
    """
    settings = Settings({name.replace("_", "-"): value for name, value in typed.items()}, config, checkpoints)
    artifact_format(artifact)
    with stdout_for_the_answer(), progress(quiet=obj["quiet"]) as listen:
        from ensexport.members import load_members
        from ensexport.packing import members_dict
        from ensexport.validation import validate

        members = load_members(list(checkpoints), **settings.loading())
        report = validate(
            artifact, members, tolerance=settings.tolerance, provider=settings.provider, on_progress=listen
        )
    settings.say_warnings(members.warnings, quiet=obj["quiet"])
    answer = {
        "command": "validate",
        "ok": True,
        "artifact": artifact,
        **members_dict(members),
        "validation": report.to_dict(),
        "warnings": [*settings.warnings, *members.warnings],
    }
    text = "\n".join([*members_lines(answer), *validation_lines(answer["validation"])])
    click.echo(json.dumps(answer) if as_json else text)
