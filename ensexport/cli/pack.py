"""`ensexport pack`."""

from __future__ import annotations

import json
from typing import Any

import click

from ensexport.cli import options
from ensexport.cli.progress import progress
from ensexport.cli.root import stdout_for_the_answer
from ensexport.cli.settings import Settings
from ensexport.cli.text import pack_lines
from ensexport.spec import artifact_format, parse_inputs


@click.command("pack", short_help="Pack checkpoints into one batched graph and prove it.")
@options.apply(
    options.checkpoints,
    click.option(
        "-o",
        "outputs",
        multiple=True,
        required=True,
        metavar="OUT",
        help="FILE.onnx, .ts or .pt2; repeatable.",
    ),
    options.model,
    options.model_args,
    options.config,
    options.inputs,
    options.per_member,
    options.emit,
    options.member_axis,
    options.opset,
    options.target,
    options.strategy,
    options.atol,
    options.rtol,
    click.option("--output-names", metavar="A,B", help="New names for the outputs, in order."),
    options.force,
    click.option("--dry-run", is_flag=True, help="Read and compare the members, write nothing."),
    options.as_json,
)
@click.pass_obj
def command(obj: dict[str, bool], /, checkpoints: tuple[str, ...], outputs: tuple[str, ...], config: str | None,
            force: bool, dry_run: bool, as_json: bool, **typed: Any) -> None:  # fmt: skip
    """Load the checkpoints CKPTS... (a folder, files or globs), batch, export and prove them.

    Every output is compared with the loop over all members before it is put in place.

    Example: ensexport pack ckpts/ --model model.py:Net --input "x:float32[batch,1,28,28]" -o ensemble.onnx -o
    ensemble.ts
    """
    settings = Settings({name.replace("_", "-"): value for name, value in typed.items()}, config, checkpoints)
    settings.check_emit()
    for output in outputs:
        artifact_format(output)
    inputs = parse_inputs(settings.values.get("inputs", ()))
    names = settings.values.get("output-names")
    with stdout_for_the_answer(), progress(quiet=obj["quiet"]) as listen:
        from ensexport.packing import pack

        report = pack(
            checkpoints, outputs, **settings.loading(), inputs=inputs,
            per_member=settings.values.get("per-member", ()), member_axis=settings.values.get("member-axis", 0),
            opset=settings.values.get("opset"), strategy=settings.values.get("strategy", "auto"),
            provider=settings.provider, output_names=names.split(",") if isinstance(names, str) else names,
            tolerance=settings.tolerance, force=force, dry_run=dry_run, on_stage=listen,
        ).to_dict()  # fmt: skip
    settings.say_warnings(report["warnings"], quiet=obj["quiet"])
    report["warnings"] = [*settings.warnings, *report["warnings"]]
    answer = {"command": "pack", "ok": True, **report}
    click.echo(json.dumps(answer) if as_json else "\n".join(pack_lines(answer)))
