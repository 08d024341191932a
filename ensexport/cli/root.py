"""The root group: finds commands, catches every error once, and keeps the exit-code contract."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from ensexport.cli.failures import report_failure
from ensexport.cli.guard import guarded, is_limited
from ensexport.cli.interrupts import Terminated
from ensexport.cli.invocation import Invocation
from ensexport.cli.options import example
from ensexport.cli.streams import drop_streams, end_stdout, prepare_streams
from ensexport.version import __version__

_COMMANDS = ("pack", "inspect", "validate", "bench", "swap", "extract")


class _Root(click.Group):
    """Loads a command's module when it is called, and turns exceptions into messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"ensexport.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def main(self, args: Sequence[str] | None = None, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Run the command line and exit with a code of the contract."""
        arguments = list(sys.argv[1:] if args is None else args)
        if is_limited():
            sys.exit(guarded(functools.partial(self._run, arguments), functools.partial(_report, arguments)))
        sys.exit(self._run(arguments))

    def _run(self, arguments: list[str]) -> int:
        """Run and return the exit code."""
        invocation = Invocation()
        try:
            with invocation.interrupts.caught():
                code = self._answer(arguments, invocation)
        except BrokenPipeError:
            drop_streams()
            code = 7
        except (KeyboardInterrupt, Terminated) as error:  # a second signal, while the answer to the first was written
            code = 130 if isinstance(error, KeyboardInterrupt) else 143
        return code

    def _answer(self, arguments: list[str], invocation: Invocation) -> int:
        """Run; every error is caught here and nowhere else.

        Click's own `main` is not used: it takes a broken pipe for success and an EOFError for an interruption.
        """
        try:
            with self.make_context("ensexport", list(arguments), obj=invocation) as context:
                self.invoke(context)
        except click.exceptions.Exit as stop:
            return stop.exit_code
        except BrokenPipeError:
            raise
        except BaseException as error:  # noqa: BLE001 - a bug of ours becomes exit 1 here
            if invocation.reserve is not None:
                invocation.reserve.release()
            return _report(arguments, error, debug=invocation.debug)
        return 0


def _report(arguments: list[str], error: BaseException, *, debug: bool = False) -> int:
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    command = next((argument for argument in options if argument in _COMMANDS), "")
    return report_failure(error, command=command, as_json="--json" in options, debug=debug)


@click.group(
    cls=_Root,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example('ensexport pack ckpts/ --model model.py:Net --input "x:float32[batch,4]" -o ensemble.onnx'),
)
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr what is being done.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing on stderr but errors.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="ensexport")
@click.pass_obj
def cli(obj: Invocation, verbose: bool, quiet: bool, debug: bool) -> None:
    """Turn the trained checkpoints of one architecture into ONE batched graph.

    The graph is proven equal to the loop over the members and written as ONNX, TorchScript or .pt2.
    """
    obj.verbose, obj.quiet, obj.debug = verbose, quiet, debug


def main() -> NoReturn:
    """Entry point of the `ensexport` command."""
    prepare_streams()
    try:
        cli.main()
    finally:
        end_stdout()
