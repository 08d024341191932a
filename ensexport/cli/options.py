"""Options that several commands take: one name, one help text, in one place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ensexport.dtypes import DTYPES
from ensexport.emission import help_text

F = TypeVar("F", bound=Callable[..., Any])


class _Size(click.ParamType[float]):
    """A finite number of 0 or more."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf:
            self.fail(f"{value!r} is no number of 0 or more.", param, ctx)
        return number


checkpoints = click.argument("checkpoints", nargs=-1, required=True, metavar="CKPTS...")
artifact = click.argument("artifact", metavar="ARTIFACT")
package = click.argument("package", metavar="PACKAGE")
member = click.option(
    "--member", type=click.IntRange(0), required=True, metavar="K", help="The member, from 0, as `inspect` lists them."
)
model = click.option(
    "--model",
    metavar="SPEC",
    help="The architecture: path/to/model.py:Net, package.module:factory, timm:NAME, torchvision:NAME, hf:FOLDER.",
)
model_args = click.option("--model-args", metavar="JSON", help="Its keyword arguments, as a JSON object.")
weights = click.option(
    "--weights",
    type=click.Choice(["ema", "raw"]),
    help="Averaged or raw weights, where a checkpoint holds both; default: averaged.",
)
key = click.option("--key", metavar="NAME", help="Where in a checkpoint the weights lie; dots for keys inside of keys.")
strip_prefix = click.option(
    "--strip-prefix",
    metavar="PREFIX",
    help="Take PREFIX off the tensors' names and leave out those without it; default: found by the architecture.",
)
allow_pickle = click.option(
    "--allow-pickle",
    is_flag=True,
    help="Open pickles that run code, whole modules say. Only for files of people you trust.",
)
trust_code = click.option(
    "--trust-code",
    is_flag=True,
    help="Open TorchScript and .pt2 programs, which run code. Only for files of people you trust.",
)
allow_nonfinite = click.option("--allow-nonfinite", is_flag=True, help="Take members that hold NaN or Inf.")
loading = (model, model_args, weights, key, strip_prefix, allow_pickle, trust_code, allow_nonfinite)
"""How members are read: the same for every command that reads them."""
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
    help="This input has one slice a member, (N, B, ...). Repeat for more.",
)
emit = click.option(
    "--emit",
    multiple=True,
    metavar="LIST",
    help="What each output becomes, names out of the table below; OUTPUT=LIST for one of several. Default: members.",
)
class_axis = click.option(
    "--class-axis",
    multiple=True,
    metavar="AXIS",
    help="Where the classes stand in one member's output, OUTPUT=AXIS for one of several. Default: -1, the last.",
)
member_weights = click.option(
    "--member-weights",
    metavar="input|FILE|LIST",
    help="How much each member counts in what is combined: an input `member_weights` of the file, or numbers that are "
    "baked in. 0 leaves a member out. Default: all alike.",
)
member_axis = click.option(
    "--member-axis",
    type=click.IntRange(0, 1),
    metavar="0|1",
    help="Where N stands in the outputs: 0 (default) gives (N, B, ...), 1 gives (B, N, ...).",
)
dtype = click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Dtype of weights and arithmetic; norms, softmax and sums stay in float32. Default: the members' own.",
)
io_dtype = click.option(
    "--io-dtype", type=click.Choice(DTYPES), help="Dtype of inputs and outputs. Default: the members' own."
)
opset = click.option("--opset", type=int, metavar="INT", help="ONNX opset version.")
target = click.option(
    "--target",
    type=click.Choice(["cpu", "cuda", "tensorrt", "portable"]),
    help="Where the file will run: chooses the rules, and where it is checked. Default: portable (checked on the CPU).",
)
provider = click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda", "tensorrt"]),
    help="Where ONNX files are checked and timed, if not where the target says: pack for a GPU on a machine without.",
)
providers = click.option(
    "--provider",
    "providers",
    multiple=True,
    type=click.Choice(["cpu", "cuda", "tensorrt", "all"]),
    help="Where to run; all: wherever it works here. Repeat for more. Default: cpu, and cuda where it works.",
)
strategy = click.option(
    "--strategy",
    type=click.Choice(["auto", "stacked", "unrolled", "tune"]),
    help="auto (default): batch where the target's rules promise a gain; stacked: batch everything; unrolled: N "
    "branches; tune: time these and hybrids here, keep the fastest.",
)
tune_batch = click.option("--tune-batch", metavar="LIST", help="Batch sizes that --strategy tune times; default: 1,8.")
atol = click.option("--atol", type=_Size(), metavar="X", help="Absolute part of the bound on the error.")
rtol = click.option(
    "--rtol",
    type=_Size(),
    metavar="X",
    help="Relative part of the bound on the error, as a share of the largest value.",
)
validate_members = click.option(
    "--validate-members",
    metavar="WHICH",
    help="Members to compare with the loop: all (default), or for the very large none, or a list of first, last and a "
    "number of random ones: first,last,8.",
)
packaging = (
    click.option("--formats", metavar="LIST", help="Models in a package, out of onnx,ts,pt2; default: onnx,ts."),
    click.option(
        "--layout",
        type=click.Choice(["folder", "triton"]),
        help="folder (default), or triton: OUT is a model repository of Triton Inference Server.",
    ),
    click.option("--name", metavar="NAME", help="What Triton calls the model."),
    click.option("--labels", metavar="FILE", help="Names of the classes, one a line, for Triton."),
    click.option(
        "--max-batch-size",
        type=click.IntRange(0),
        metavar="INT",
        help="Rows of the largest batch that Triton makes; default: 64, or what the model takes; 0: no batching.",
    ),
    click.option(
        "--no-state",
        is_flag=True,
        help="Leave out of a package the members' tensors that cannot be read back from the graph.",
    ),
    click.option(
        "--sample-inputs",
        metavar="DATA.npz",
        help="Inputs of your own, an array an input: compared with the loop too, and a package's first sample.",
    ),
    click.option(
        "--external-data",
        is_flag=True,
        help="Put the weights of ONNX files into a file beside them; default: only above 2 GiB.",
    ),
)
"""What a package holds, and how."""
force = click.option("--force", is_flag=True, help="Replace outputs that exist.")
as_json = click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object on stdout.")


def apply(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Decorate a command with several options, in the order `--help` shows them."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def emit_table() -> str:
    """The end of the help of a command that takes `--emit`: the names and their formulas."""
    return (
        "\b\nNames for --emit, of the members' outputs y_k with weights w_k that sum to 1 (1/N by default);\n"
        f"p_k is the softmax of y_k over the class axis:\n{help_text()}"
    )


def example(line: str) -> str:
    """The end of a command's help: one example, as it is typed. The tests run it."""
    return f"\b\nExample:\n  {line}"  # \b keeps Click from wrapping what follows
