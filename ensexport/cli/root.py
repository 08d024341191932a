"""The root group: finds commands, catches every error once, and keeps the exit-code contract."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

import click

from ensexport.errors import EnsexportError
from ensexport.version import __version__

_COMMANDS = {"pack": "pack", "validate": "validate", "bench": "bench"}


class _Terminated(BaseException):
    """SIGTERM arrived; raised like KeyboardInterrupt so that staged files are removed on the way out."""


class _Root(click.Group):
    """Loads a command's module when it is called, and turns exceptions into messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"ensexport.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = module.command
        return command

    def main(self, args: Sequence[str] | None = None, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Run the command line and exit with a code of the contract."""
        arguments = list(sys.argv[1:] if args is None else args)
        with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
            signal.signal(signal.SIGTERM, _terminate)
        try:
            code = super().main(arguments, prog_name="ensexport", standalone_mode=False)
            _flush()
        except click.exceptions.Exit as stop:
            code = stop.exit_code
        except click.UsageError as error:
            code = _usage(error, arguments)
        except EnsexportError as error:
            code = _refused(error, arguments)
        except (KeyboardInterrupt, click.Abort):
            code = _interrupted("interrupted", 130, arguments)
        except _Terminated:
            code = _interrupted("terminated", 143, arguments)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads on; the interpreter would complain at exit
            code = 7
        except Exception as error:  # noqa: BLE001 - the one place where a bug of ours becomes exit 1
            code = _bug(error, arguments)
        sys.exit(code if isinstance(code, int) else 0)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


def _flush() -> None:
    try:
        sys.stdout.flush()
    except ValueError:
        raise BrokenPipeError from None


def _command_in(arguments: Sequence[str]) -> str:
    return next((argument for argument in arguments if argument in _COMMANDS), "")


def _report(arguments: Sequence[str], error: dict[str, Any], exit_code: int, text: str) -> int:
    """Write the failure: one JSON object on stdout with --json, a message on stderr otherwise."""
    if "--json" in arguments:
        answer = {"command": _command_in(arguments), "ok": False, "error": error, "exit_code": exit_code}
        click.echo(json.dumps(answer))
    else:
        click.echo(text, err=True)
    return exit_code


def _usage(error: click.UsageError, arguments: Sequence[str]) -> int:
    details = {"code": "E_USAGE", "message": error.format_message(), "hint": "See --help."}
    if "--json" in arguments:
        return _report(arguments, details, 2, "")
    error.show()
    return 2


def _refused(error: EnsexportError, arguments: Sequence[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    text = f"error: {error.message}" + (f"\n{error.hint}" if error.hint else "") + f" [{error.code}]"
    return _report(arguments, error.to_dict(), error.exit_code, text)


def _interrupted(word: str, exit_code: int, arguments: Sequence[str]) -> int:
    message = f"{word}; nothing was written."
    return _report(arguments, {"code": f"E_{word.upper()}", "message": message, "hint": ""}, exit_code, message)


def _bug(error: Exception, arguments: Sequence[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    message = f"internal error: {type(error).__name__}: {error}"
    hint = "This is a bug in ensexport: run `ensexport --debug ...` and report the traceback."
    return _report(arguments, {"code": "E_INTERNAL", "message": message, "hint": hint}, 1, f"{message}\n{hint}")


@contextlib.contextmanager
def stdout_for_the_answer() -> Iterator[None]:
    """Send everything printed inside (a model's own prints, a library's chatter) to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        if sys.__stdout__ is None or sys.stderr is not sys.__stderr__:
            yield
            return
        sys.__stdout__.flush()
        saved = os.dup(1)
        os.dup2(2, 1)
        try:
            yield
        finally:
            os.dup2(saved, 1)
            os.close(saved)


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing on stderr but errors.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="ensexport")
@click.pass_context
def cli(ctx: click.Context, verbose: bool, quiet: bool, debug: bool) -> None:
    """Turn the trained checkpoints of one architecture into ONE batched graph.

    The graph is proven equal to the loop over the members and written as ONNX, TorchScript or .pt2.

    Example: ensexport pack ckpts/ --model model.py:Net --input "x:float32[batch,1,28,28]" -o ensemble.onnx
    """
    ctx.obj = {"verbose": verbose, "quiet": quiet, "debug": debug}


def main() -> NoReturn:
    """Entry point of the `ensexport` command."""
    cli.main()
