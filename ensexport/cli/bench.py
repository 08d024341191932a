"""`ensexport bench`."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import click

from ensexport.bench.names import MODES, check_alternative, default_alternatives
from ensexport.bench.plot import check_suffix, draw
from ensexport.cli import options
from ensexport.cli.bench_text import bench_lines
from ensexport.cli.invocation import Invocation
from ensexport.cli.settings import Settings, positive_integers
from ensexport.cli.streams import write_json
from ensexport.errors import OutputError, UsageError
from ensexport.members.discovery import find_checkpoints
from ensexport.spec import artifact_format
from ensexport.staging import Staging, writing


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
        "--members",
        metavar="LIST",
        help="Also measure the first so many members, packed for it, such as 1,2,5; default: the artifact's number.",
    ),
    click.option("--alternatives", metavar="A,B", help="What to compare with; default: all there is."),
    click.option(
        "--min-speedup",
        metavar="X[:ALT]",
        help="Exit 5 if the artifact is less than X times as fast as the alternative ALT (default: loop).",
    ),
    click.option("--blocks", type=click.IntRange(3), default=30, show_default=True, help="Rounds of blocks."),
    click.option(
        "--mode",
        type=click.Choice(MODES),
        help="interleaved: all take turns; isolated: only two are in memory at a time. Default: what memory allows.",
    ),
    click.option(
        "--provider",
        "--target",
        "target",
        type=click.Choice(["cpu", "cuda", "tensorrt", "portable"]),
        help="Where to run; default: cpu. One that is not there is an error.",
    ),
    click.option(
        "--plot",
        "plots",
        multiple=True,
        metavar="FILE",
        help="Draw the speed-ups: .png, .svg or .html. Repeat for more.",
    ),
    click.option("--force", is_flag=True, help="Replace drawings that exist."),
    *options.loading,
    options.config,
    options.as_json,
)
@click.pass_obj
def command(obj: Invocation, /, artifact: str, checkpoints: tuple[str, ...], batch: str, members: str | None,
            alternatives: str | None, min_speedup: str | None, blocks: int, mode: str | None, plots: tuple[str, ...],
            force: bool, config: str | None, as_json: bool, **typed: Any) -> None:  # fmt: skip
    """Time ARTIFACT against the loops over the checkpoints CKPTS... that it replaces, side by side.

    Outputs are compared before anything is timed. A ratio is the alternative's time over the artifact's.
    """
    settings = Settings(typed, config, checkpoints)
    loading = settings.loading()
    artifact_format(artifact)
    chosen = _chosen(alternatives, artifact, settings.provider)
    batches, sizes = (
        positive_integers(batch, "--batch"),
        positive_integers(members, "--members") if members is not None else None,
    )
    speedup = _speedup(min_speedup, artifact, settings.provider, chosen)
    _check_plots(plots, force=force)
    find_checkpoints(checkpoints)
    with Staging([Path(plot) for plot in plots], force=force) as staging:
        with obj.working() as listen:
            from ensexport.bench.run import bench

            report = bench(
                artifact, checkpoints, **loading, batches=batches, n_members=sizes, blocks=blocks,
                provider=settings.provider, alternatives=chosen, mode=mode, on_stage=listen,
            )  # fmt: skip
        settings.say_warnings((), quiet=obj.quiet)
        answer = {"command": "bench", "ok": True, "artifact": artifact, **report.to_dict()}
        answer |= {"plots": list(plots), "warnings": settings.warnings}
        if not as_json:
            click.echo("\n".join(bench_lines(answer)))
        if speedup is not None:
            report.check_speedup(*speedup)
        _draw(answer, staging)
    if as_json:
        write_json(answer)


def _chosen(text: str | None, artifact: str, provider: str) -> list[str]:
    chosen = default_alternatives(artifact, provider) if text is None else [part.strip() for part in text.split(",")]
    for name in chosen:
        check_alternative(name, artifact, provider)
    return list(chosen)


def _speedup(text: str | None, artifact: str, provider: str, chosen: list[str]) -> tuple[float, str] | None:
    if text is None:
        return None
    number, _, alternative = text.partition(":")
    try:
        minimum = float(number)
    except ValueError:
        minimum = math.nan
    if not 0 < minimum < math.inf:
        raise UsageError(f"cannot read --min-speedup {text!r}: expected a positive number, or like 2:loop.")
    alternative = alternative or "loop"
    check_alternative(alternative, artifact, provider)
    if alternative not in chosen:
        raise UsageError(f"--min-speedup {text!r} is about {alternative!r}, which --alternatives leaves out.")
    return minimum, alternative


def _check_plots(plots: tuple[str, ...], *, force: bool) -> None:
    """Find what can be found wrong before anything is measured."""
    for plot in plots:
        check_suffix(Path(plot))
    Staging([Path(plot) for plot in plots], force=force)
    if plots and importlib.util.find_spec("matplotlib") is None:
        raise OutputError(
            f"cannot draw '{plots[0]}': matplotlib is not installed.", hint='Run: pip install "ensexport[plot]"'
        )


def _draw(answer: dict[str, Any], staging: Staging) -> None:
    for target in staging.targets:
        with writing(target):
            draw(answer, staging.path(target))
    staging.commit()
