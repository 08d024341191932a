"""`ensexport bench`."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import click

from ensexport.bench.canvas import check_suffix
from ensexport.bench.curve_names import CURVE_ALTERNATIVES
from ensexport.bench.curve_plot import draw_curve
from ensexport.bench.names import MODES, check_alternative, default_alternatives
from ensexport.bench.plot import draw
from ensexport.cli import options
from ensexport.cli.bench_text import bench_lines
from ensexport.cli.curve_text import curve_lines
from ensexport.cli.invocation import Invocation
from ensexport.cli.settings import Settings, positive_integers
from ensexport.cli.streams import write_json
from ensexport.errors import OutputError, UsageError
from ensexport.members.discovery import find_checkpoints
from ensexport.package.resolving import artifact_files
from ensexport.staging import Staging, writing


@click.command(
    "bench",
    short_help="Time an artifact against the loops it replaces.",
    epilog=options.example("ensexport bench ensemble.onnx ckpts/ --model model.py:Net --batch 1,8,64"),
)
@options.apply(
    options.artifact,
    options.checkpoints,
    click.option("--batch", metavar="LIST", help="Batch sizes; default: 1,8,64, with --members-curve 1."),
    click.option(
        "--members",
        metavar="LIST",
        help="Also measure the first so many members, packed for it, such as 1,2,5; default: the artifact's number.",
    ),
    click.option(
        "--members-curve",
        metavar="DATA.npz",
        help="How many members do you need? Quality and time for 1 to N members (or those of --members), on an array "
        "an input and perhaps `labels`.",
    ),
    click.option(
        "--curve-output", metavar="NAME", help="The output to average there; default: the first with a class axis."
    ),
    click.option(
        "--alternatives",
        metavar="A,B",
        help="What to compare with; default: all there is, with --members-curve loop.",
    ),
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
        help="Draw the speed-ups, or the members curve: .png, .svg or .html. Repeat for more.",
    ),
    click.option("--force", is_flag=True, help="Replace drawings that exist."),
    *options.loading,
    options.config,
    options.as_json,
)
@click.pass_obj
def command(obj: Invocation, /, artifact: str, checkpoints: tuple[str, ...], batch: str | None, members: str | None,
            members_curve: str | None, curve_output: str | None, alternatives: str | None, min_speedup: str | None,
            blocks: int, mode: str | None, plots: tuple[str, ...], force: bool, config: str | None, as_json: bool,
            **typed: Any) -> None:  # fmt: skip
    """Time ARTIFACT against the loops over the checkpoints CKPTS... that it replaces, side by side.

    Outputs are compared before anything is timed. A ratio is the alternative's time over the artifact's.
    """
    settings = Settings(typed, config, checkpoints)
    loading = settings.loading()
    artifact = artifact_files(artifact)[0]
    chosen = _chosen(alternatives, artifact, settings.provider, with_curve=members_curve is not None)
    batches = _batches(batch, with_curve=members_curve is not None)
    sizes = positive_integers(members, "--members") if members is not None else None
    speedup = _speedup(min_speedup, artifact, settings.provider, chosen)
    if curve_output is not None and members_curve is None:
        raise UsageError("--curve-output is given without --members-curve.", hint="Add --members-curve DATA.npz.")
    _check_plots(plots, force=force)
    find_checkpoints(checkpoints)
    with Staging([Path(plot) for plot in plots], force=force) as staging:
        with obj.working() as listen:
            from ensexport.bench.curve import measure_curve
            from ensexport.bench.run import bench

            curve = None
            if members_curve is not None:
                curve = measure_curve(
                    artifact, members_curve, sizes=sizes, output=curve_output, provider=settings.provider,
                    on_stage=listen,
                )  # fmt: skip
            report = bench(
                artifact, checkpoints, **loading, batches=batches, n_members=curve.sizes if curve else sizes,
                blocks=blocks, provider=settings.provider, alternatives=chosen, mode=mode, on_stage=listen,
            )  # fmt: skip
        warnings = curve.warnings if curve else ()
        settings.say_warnings(warnings, quiet=obj.quiet)
        answer = {"command": "bench", "ok": True, "artifact": artifact, **report.to_dict()}
        answer |= {"plots": list(plots), "warnings": [*settings.warnings, *warnings]}
        answer |= curve.to_dict(report) if curve else {}
        if not as_json:
            click.echo("\n".join(curve_lines(answer) if curve else bench_lines(answer)))
        if speedup is not None:
            report.check_speedup(*speedup)
        _draw(answer, staging)
    if as_json:
        write_json(answer)


def _batches(text: str | None, *, with_curve: bool) -> list[int]:
    found = positive_integers(("1" if with_curve else "1,8,64") if text is None else text, "--batch")
    if with_curve and len(found) > 1:
        raise UsageError(f"cannot time a members curve at the batch sizes {text}: expected one.", hint="Add --batch 1.")
    return found


def _chosen(text: str | None, artifact: str, provider: str, *, with_curve: bool) -> list[str]:
    default = CURVE_ALTERNATIVES if with_curve else default_alternatives(artifact, provider)
    chosen = default if text is None else [part.strip() for part in text.split(",")]
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
            (draw_curve if "members_curve" in answer else draw)(answer, staging.path(target))
    staging.commit()
