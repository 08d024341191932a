"""`ensexport extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ensexport.cli import options
from ensexport.cli.extract_text import extract_lines
from ensexport.cli.invocation import Invocation
from ensexport.cli.streams import write_json
from ensexport.errors import UsageError
from ensexport.spec import Tolerance
from ensexport.staging import Staging


@click.command(
    "extract",
    short_help="Take one member out of a packed file.",
    epilog=options.example("ensexport extract ensemble.onnx --member 1 -o member_1.onnx"),
)
@options.apply(
    options.artifact,
    options.member,
    click.option("-o", "onnx", metavar="OUT", help="Write the member as an ONNX file of its own: FILE.onnx."),
    click.option(
        "--state-dict",
        metavar="FILE",
        help="Write the member's own tensors, bit for bit under the names of its checkpoint: FILE.safetensors.",
    ),
    click.option("--partial", is_flag=True, help="Write the tensors there are, where others are not in the file."),
    options.provider,
    options.atol,
    options.rtol,
    options.force,
    options.as_json,
)
@click.pass_obj
def command(obj: Invocation, /, artifact: str, member: int, onnx: str | None, state_dict: str | None,
            force: bool, partial: bool, provider: str | None, atol: float | None, rtol: float | None,
            as_json: bool) -> None:  # fmt: skip
    """Take member K out of ARTIFACT, an ONNX file that was packed or a package: no checkpoints, no model code.

    The member's file is compared with the packed file before it is put in place.
    """
    _refuse_early(artifact, [path for path in (onnx, state_dict) if path is not None], force=force)
    asked: dict[str, Any] = {"onnx": onnx, "state_dict": state_dict, "partial": partial, "force": force}
    with obj.working() as listen:
        from ensexport.extracting.extract import extract

        report = extract(artifact, member, **asked, provider=provider or "cpu", tolerance=Tolerance(atol, rtol),
                         on_stage=listen).to_dict()  # fmt: skip
    for warning in () if obj.quiet else report["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    answer = {"command": "extract", "ok": True, **report}
    write_json(answer) if as_json else click.echo("\n".join(extract_lines(answer)))


def _refuse_early(artifact: str, outputs: list[str], *, force: bool) -> None:
    """Find what can be found wrong before torch is loaded, which takes seconds."""
    if not Path(artifact).exists():
        raise UsageError(f"'{artifact}' does not exist.", hint="Check the path.")
    Staging([Path(output) for output in outputs], force=force)
