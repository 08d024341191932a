"""`ensexport bench`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from ensexport.cli import options
from ensexport.cli.progress import progress
from ensexport.cli.root import stdout_for_the_answer
from ensexport.cli.settings import Settings
from ensexport.errors import UsageError
from ensexport.spec import artifact_format


@click.command("bench", short_help="Time an artifact against the loops it replaces.")
@options.apply(
    options.artifact,
    options.checkpoints,
    click.option("--batch", default="1,8,64", show_default=True, metavar="LIST", help="Batch sizes."),
    click.option(
        "--min-speedup",
        metavar="X[:ALTERNATIVE]",
        help="Exit 5 below X times the speed; default alternative: loop.",
    ),
    click.option("--blocks", type=click.IntRange(3), default=30, show_default=True, help="Rounds of blocks."),
    options.model,
    options.model_args,
    options.config,
    options.target,
    options.as_json,
)
@click.pass_obj
def command(obj: dict[str, bool], /, artifact: str, checkpoints: tuple[str, ...], batch: str, min_speedup: str | None,
            blocks: int, config: str | None, as_json: bool, **typed: Any) -> None:  # fmt: skip
    """Time ARTIFACT against the loops over the checkpoints CKPTS... that it replaces, side by side.

    Outputs are compared before anything is timed. A ratio is the alternative's time over the artifact's.

    Example: ensexport bench ensemble.onnx ckpts/ --model model.py:Net --batch 1,8,64
    """
    settings = Settings({name.replace("_", "-"): value for name, value in typed.items()}, config, checkpoints)
    artifact_format(artifact)
    batches, speedup = _batches(batch), _speedup(min_speedup)
    with stdout_for_the_answer(), progress(quiet=obj["quiet"]) as listen:
        from ensexport.bench.run import bench

        report = bench(artifact, checkpoints, **settings.loading(), batches=batches, blocks=blocks,
                       provider=settings.provider, on_stage=listen)  # fmt: skip
    settings.say_warnings((), quiet=obj["quiet"])
    answer = {"command": "bench", "ok": True, "artifact": artifact, **report.to_dict()}
    if not as_json:
        click.echo("\n".join(_lines(answer)))
    if speedup is not None:
        report.check_speedup(*speedup)
    if as_json:
        click.echo(json.dumps(answer))


def _batches(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"cannot read --batch {text!r}: expected positive integers like 1,8,64.")
    return [int(part) for part in parts]


def _speedup(text: str | None) -> tuple[float, str] | None:
    if text is None:
        return None
    number, _, alternative = text.partition(":")
    try:
        return float(number), alternative or "loop"
    except ValueError:
        raise UsageError(f"cannot read --min-speedup {text!r}: expected a number, or like 2:loop.") from None


def _lines(answer: dict[str, Any]) -> Iterator[str]:
    environment = answer["environment"]
    yield (
        f"{answer['artifact']} on {environment['processor']}, {environment['threads']} threads, "
        f"ONNX Runtime {environment['onnxruntime']}, torch {environment['torch']}"
    )
    batch = None
    for row in answer["results"]:
        if row["batch"] != batch:
            batch = row["batch"]
            yield f"\nbatch {batch:<14}{'ms a call':>12}   times as long as the artifact (95 % interval)"
        interval = f"{row['ratio']:>8.2f}   ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        yield f"  {row['alternative']:<18}{row['median_ms']:>12.3f}   {interval}"
    for kind, reason in answer["left_out"].items():
        yield f"left out: {kind}: {reason}"
    yield f"\n{environment['method']}; outputs compared first"
