"""Options that several commands take: one name, one help text, in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

checkpoints = click.argument("checkpoints", nargs=-1, required=True, metavar="CKPTS...")
artifact = click.argument("artifact", metavar="ARTIFACT")
model = click.option(
    "--model", metavar="SPEC", help="The architecture: path/to/model.py:Net or package.module:factory."
)
model_args = click.option("--model-args", metavar="JSON", help="Its keyword arguments, as a JSON object.")
config = click.option(
    "--config",
    metavar="FILE",
    help="Settings file; default: ensexport.toml or pyproject.toml upwards from here.",
)
inputs = click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="SPEC",
    help="One input of one member, NAME:DTYPE[DIM,...]; a named DIM is dynamic. Repeat for more.",
)
per_member = click.option(
    "--per-member",
    multiple=True,
    metavar="NAME",
    help="This input has one slice a member, (N, B, ...). Repeatable.",
)
emit = click.option("--emit", metavar="LIST", help="What each output becomes; `members`: (N, B, ...).")
member_axis = click.option(
    "--member-axis", type=click.IntRange(0, 1), help="Where N stands in the outputs: 0 (default) or 1."
)
opset = click.option("--opset", type=int, metavar="INT", help="ONNX opset version.")
target = click.option(
    "--target",
    type=click.Choice(["cpu", "cuda", "tensorrt", "portable"]),
    help="Where the ONNX file will run, and is checked; default: portable, checked on the CPU.",
)
strategy = click.option(
    "--strategy",
    type=click.Choice(["auto", "stacked", "unrolled"]),
    help="auto: batch op by op, unroll what cannot be; stacked: never unroll the graph; unrolled: N branches.",
)
atol = click.option("--atol", type=click.FloatRange(0), help="Absolute part of the bound on the error.")
rtol = click.option("--rtol", type=click.FloatRange(0), help="Relative part of the bound on the error.")
force = click.option("--force", is_flag=True, help="Replace outputs that exist.")
as_json = click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object on stdout.")


def apply(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Decorate a command with several options, in the order `--help` shows them."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate
