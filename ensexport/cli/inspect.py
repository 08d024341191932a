"""`ensexport inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ensexport.cli import options
from ensexport.cli.invocation import Invocation
from ensexport.cli.members_text import artifact_lines, inspection_lines
from ensexport.cli.package_text import package_lines
from ensexport.cli.settings import Settings
from ensexport.cli.streams import write_json
from ensexport.members.discovery import find_checkpoints
from ensexport.package.manifest import is_package
from ensexport.spec import FORMAT_BY_SUFFIX


@click.command(
    "inspect",
    short_help="Say what a folder of checkpoints holds, and what pack would take.",
    epilog=options.example("ensexport inspect ckpts/ --model model.py:Net"),
)
@options.apply(options.checkpoints, *options.loading, options.config, options.as_json)
@click.pass_context
def command(ctx: click.Context, /, checkpoints: tuple[str, ...], config: str | None, as_json: bool,
            **typed: Any) -> None:  # fmt: skip
    """Say what the checkpoints CKPTS... (a folder, files or globs) hold: members, what is skipped and why, problems.

    Reads what `pack` would read and writes nothing. The exit code is the one `pack` would end with. One file that
    ends in .onnx, .ts or .pt2 is an artifact: its members, inputs, outputs and how it was made. One folder with the
    manifest of a package: what that says; `verify` checks it.
    """
    obj: Invocation = ctx.obj
    if len(checkpoints) == 1 and is_package(checkpoints[0]):
        _inspect_package(obj, checkpoints[0], as_json=as_json)
        return
    if len(checkpoints) == 1 and Path(checkpoints[0]).suffix in FORMAT_BY_SUFFIX and not typed["trust_code"]:
        _inspect_artifact(obj, checkpoints[0], as_json=as_json)
        return
    settings = Settings(typed, config, checkpoints)
    model = settings.values.get("model")
    find_checkpoints(checkpoints)
    with obj.working() as listen:
        from ensexport.members.inspection import inspect_members

        report = inspect_members(
            list(checkpoints), model, **settings.reading(), on_progress=lambda _path, *count: listen("load", *count)
        )
    answer: dict[str, Any] = {"command": "inspect", "ok": not report.problems, **report.to_dict()}
    answer["warnings"] = [*settings.warnings, *answer["warnings"]]
    exit_code = report.problems[0].exit_code if report.problems else 0
    if report.problems:
        answer |= {"error": report.problems[0].to_dict(), "exit_code": exit_code}
    write_json(answer) if as_json else click.echo("\n".join(inspection_lines(answer)))
    ctx.exit(exit_code)


def _inspect_artifact(obj: Invocation, path: str, *, as_json: bool) -> None:
    with obj.working():
        from ensexport.runtime.describing import describe_artifact

        answer = {"command": "inspect", "ok": True, **describe_artifact(path)}
    write_json(answer) if as_json else click.echo("\n".join(artifact_lines(answer)))


def _inspect_package(obj: Invocation, path: str, *, as_json: bool) -> None:
    with obj.working():
        from ensexport.package.describing import describe_package

        answer = {"command": "inspect", "ok": True, **describe_package(path)}
    write_json(answer) if as_json else click.echo("\n".join(package_lines(answer)))
