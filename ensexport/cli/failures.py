"""Exceptions -> a message, or one JSON object, and an exit code of the contract. Used by the root group alone."""

from __future__ import annotations

import traceback
from typing import Any

import click

from ensexport.cli.interrupts import Terminated
from ensexport.cli.streams import write_json
from ensexport.errors import EnsexportError
from ensexport.memory_errors import out_of_memory, unexplained


def report_failure(error: BaseException, *, command: str, as_json: bool, debug: bool) -> int:
    """Say what failed: one JSON object on stdout with `--json`, a message on stderr otherwise.

    Args:
        error: What was raised.
        command: The command that was called, empty if there was none.
        as_json: `--json` was given.
        debug: Show the traceback.

    Returns:
        The exit code.
    """
    details, exit_code = _describe(error)
    if debug and not isinstance(error, click.ClickException):
        traceback.print_exception(error)
    if as_json:
        write_json({"command": command, "ok": False, "error": details, "exit_code": exit_code})
    elif isinstance(error, click.ClickException):
        error.show()
    else:
        hint = f"\n{details['hint']}" if details["hint"] else ""
        click.echo(f"error [{details['code']}]: {details['message']}{hint}", err=True)
    return exit_code


def _describe(error: BaseException) -> tuple[dict[str, Any], int]:
    """Return the `error` object and the exit code."""
    error = out_of_memory(error) or error
    if isinstance(error, EnsexportError):
        details, exit_code = error.to_dict(), error.exit_code
    elif isinstance(error, click.ClickException):
        details, exit_code = _details("E_USAGE", error.format_message(), _help_of(error)), 2
    elif isinstance(error, KeyboardInterrupt):
        details, exit_code = _details("E_INTERRUPTED", "interrupted: nothing was written."), 130
    elif isinstance(error, Terminated):
        details, exit_code = _details("E_TERMINATED", "terminated: nothing was written."), 143
    elif isinstance(error, OSError):
        file = f"'{error.filename}': " if error.filename else ""
        reason = error.strerror or str(error)
        details = _details("E_ENVIRONMENT", f"the system refused: {file}{reason}.", "Check disk space and permissions.")
        exit_code = 7
    elif (shortage := unexplained(error)) is not None:
        details, exit_code = shortage.to_dict(), shortage.exit_code
    else:
        hint = "This is a bug in ensexport: run `ensexport --debug ...` and report the traceback."
        details, exit_code = _details("E_INTERNAL", f"internal error: {type(error).__name__}: {error}", hint), 1
    return details, exit_code


def _details(code: str, message: str, hint: str = "") -> dict[str, Any]:
    return {"code": code, "message": message, "hint": hint}


def _help_of(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"See `{context.command_path if context else 'ensexport'} --help`."
