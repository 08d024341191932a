"""`ensexport bench`."""

from __future__ import annotations

import math
import re
from typing import Any

import click

from ensexport.bench.names import check_alternative
from ensexport.cli import options
from ensexport.cli.invocation import Invocation
from ensexport.cli.settings import Settings
from ensexport.cli.streams import write_json
from ensexport.cli.text import bench_lines
from ensexport.errors import UsageError
from ensexport.members.discovery import find_checkpoints
from ensexport.spec import artifact_format


@click.command(
    "bench",
    short_help="Time an artifact against the loops it replaces.",
    epilog=options.example("ensexport bench ensemble.onnx ckpts/ --model model.py:Net --batch 1,8,64"),
)
@options.apply(
    options.artifact,
    options.checkpoints,
    click.option("--batch", default="1,8,64", show_default=True, metavar="LIST", help="Batch sizes."),
    click.option(
        "--min-speedup",
        metavar="X[:ALT]",
        help="Exit 5 if the artifact is less than X times as fast as the alternative ALT (default: loop).",
    ),
    click.option("--blocks", type=click.IntRange(3), default=30, show_default=True, help="Rounds of blocks."),
    options.model,
    options.model_args,
    options.config,
    options.target,
    options.as_json,
)
@click.pass_obj
def command(obj: Invocation, /, artifact: str, checkpoints: tuple[str, ...], batch: str, min_speedup: str | None,
            blocks: int, config: str | None, as_json: bool, **typed: Any) -> None:  # fmt: skip
    """Time ARTIFACT against the loops over the checkpoints CKPTS... that it replaces, side by side.

    Outputs are compared before anything is timed. A ratio is the alternative's time over the artifact's.
    """
    settings = Settings(typed, config, checkpoints)
    loading = settings.loading()
    artifact_format(artifact)
    batches, speedup = _batches(batch), _speedup(min_speedup, artifact)
    find_checkpoints(checkpoints)
    with obj.working() as listen:
        from ensexport.bench.run import bench

        report = bench(artifact, checkpoints, **loading, batches=batches, blocks=blocks,
                       provider=settings.provider, on_stage=listen)  # fmt: skip
    settings.say_warnings((), quiet=obj.quiet)
    answer = {"command": "bench", "ok": True, "artifact": artifact, **report.to_dict(), "warnings": settings.warnings}
    if not as_json:
        click.echo("\n".join(bench_lines(answer)))
    if speedup is not None:
        report.check_speedup(*speedup)
    if as_json:
        write_json(answer)


def _batches(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,8}", part) for part in parts):
        raise UsageError(f"cannot read --batch {text!r}: expected positive integers like 1,8,64.")
    return [int(part) for part in parts]


def _speedup(text: str | None, artifact: str) -> tuple[float, str] | None:
    if text is None:
        return None
    number, _, alternative = text.partition(":")
    try:
        minimum = float(number)
    except ValueError:
        minimum = math.nan
    if not 0 < minimum < math.inf:
        raise UsageError(f"cannot read --min-speedup {text!r}: expected a positive number, or like 2:loop.")
    check_alternative(alternative or "loop", artifact)
    return minimum, alternative or "loop"
