"""`ensexport swap`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensexport.cli import options
from ensexport.cli.invocation import Invocation
from ensexport.cli.settings import Settings
from ensexport.cli.streams import write_json
from ensexport.cli.text import swap_lines
from ensexport.members.discovery import find_checkpoints
from ensexport.spec import artifact_format
from ensexport.staging import Staging

if TYPE_CHECKING:
    from ensexport.swapping.run import SwapReport


@click.command(
    "swap",
    short_help="Replace one member of an artifact, without a new export.",
    epilog=options.example("ensexport swap ensemble.onnx --member 1 new.pt --model model.py:Net -o swapped.onnx"),
)
@options.apply(
    options.artifact,
    click.argument("checkpoint", metavar="CKPT"),
    click.option(
        "--member", type=click.IntRange(min=0), required=True, metavar="K", help="The member to replace, from 0."
    ),
    click.option("-o", "output", required=True, metavar="OUT", help="The file to write, of ARTIFACT's format."),
    *options.loading,
    options.config,
    options.target,
    options.provider,
    options.atol,
    options.rtol,
    options.force,
    options.as_json,
)
@click.pass_obj
def command(obj: Invocation, /, artifact: str, checkpoint: str, member: int, output: str, config: str | None,
            force: bool, as_json: bool, **typed: Any) -> None:  # fmt: skip
    """Write OUT: ARTIFACT with the checkpoint CKPT in the place of member K, proven equal to it.

    The graph and the other members' bytes stay as they are. The number of members is part of the graph: to add one or
    to leave one out, pack again.
    """
    settings = Settings(typed, config, [checkpoint])
    loading = settings.loading()
    is_package = Path(artifact).is_dir()
    if not is_package:
        artifact_format(artifact)
    Staging([] if is_package else [Path(output)], folders=[Path(output)] if is_package else [], force=force)
    find_checkpoints([checkpoint])
    with obj.working() as listen:
        write = _writer(is_package=is_package)
        report = write(artifact, member, checkpoint, output, **loading, tolerance=settings.tolerance,
                       provider=settings.provider, force=force, on_stage=listen).to_dict()  # fmt: skip
    settings.say_warnings(report["warnings"], quiet=obj.quiet)
    report["warnings"] = [*settings.warnings, *report["warnings"]]
    answer = {"command": "swap", "ok": True, **report}
    write_json(answer) if as_json else click.echo("\n".join(swap_lines(answer)))


def _writer(*, is_package: bool) -> Callable[..., SwapReport]:
    """What swaps a file or a package; for a file what only packages need is not loaded."""
    if is_package:
        from ensexport.swapping.package import swap_package

        return swap_package
    from ensexport.swapping.run import swap

    return swap
