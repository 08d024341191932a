"""`ensexport pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ensexport.cli import options
from ensexport.cli.invocation import Invocation
from ensexport.cli.settings import Settings
from ensexport.cli.streams import write_json
from ensexport.cli.text import pack_lines
from ensexport.members.discovery import find_checkpoints
from ensexport.package.choice import PackageChoice
from ensexport.package.planning import plan_outputs


@click.command(
    "pack",
    short_help="Pack checkpoints into one batched graph and prove it.",
    epilog=options.emit_table()
    + "\n\n"
    + options.example(
        'ensexport pack ckpts/ --model model.py:Net --input "x:float32[batch,4]" -o ensemble.onnx -o ensemble.ts'
    ),
)
@options.apply(
    options.checkpoints,
    click.option(
        "-o",
        "outputs",
        multiple=True,
        required=True,
        metavar="OUT",
        help="FILE.onnx, .ts or .pt2; a name without a suffix is a package folder. Repeat for more.",
    ),
    *options.loading,
    options.config,
    options.inputs,
    options.per_member,
    options.emit,
    options.class_axis,
    options.member_weights,
    options.member_axis,
    options.dtype,
    options.io_dtype,
    options.opset,
    options.target,
    options.provider,
    options.strategy,
    options.tune_batch,
    options.atol,
    options.rtol,
    options.validate_members,
    click.option("--output-names", metavar="A,B", help="New names for the outputs, in order."),
    *options.packaging,
    options.force,
    click.option("--dry-run", is_flag=True, help="Read and compare the members, check the outputs, write nothing."),
    options.as_json,
)
@click.pass_obj
def command(obj: Invocation, /, checkpoints: tuple[str, ...], outputs: tuple[str, ...], config: str | None,
            force: bool, dry_run: bool, as_json: bool, **typed: Any) -> None:  # fmt: skip
    """Load the checkpoints CKPTS... (a folder, files or globs), batch, export and prove them.

    Every output is compared with the loop over all members before it is put in place.
    """
    settings = Settings(typed, config, checkpoints)
    arguments = settings.packing()
    _refuse_early(checkpoints, outputs, arguments["package"], force=force)
    with obj.working() as listen:
        from ensexport.packing import pack

        report = pack(
            checkpoints,
            outputs,
            **arguments,
            force=force,
            dry_run=dry_run,
            on_stage=listen,
            on_estimate=obj.say_estimate,
        ).to_dict()
    settings.say_warnings(report["warnings"], quiet=obj.quiet)
    report["warnings"] = [*settings.warnings, *report["warnings"]]
    answer = {"command": "pack", "ok": True, **report}
    write_json(answer) if as_json else click.echo("\n".join(pack_lines(answer)))


def _refuse_early(
    checkpoints: tuple[str, ...], outputs: tuple[str, ...], package: PackageChoice, *, force: bool
) -> None:
    """Find what can be found wrong before torch is loaded, which takes seconds."""
    request = plan_outputs([Path(output) for output in outputs], package)
    request.staging(force=force)
    find_checkpoints(checkpoints)
