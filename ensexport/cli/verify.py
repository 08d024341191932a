"""`ensexport verify`."""

from __future__ import annotations

import click

from ensexport.cli import options
from ensexport.cli.invocation import Invocation
from ensexport.cli.package_text import verify_lines
from ensexport.cli.streams import write_json


@click.command(
    "verify",
    short_help="Check a package's files and run its stored samples again.",
    epilog=options.example("ensexport verify ensemble"),
)
@options.apply(options.package, options.providers, options.trust_code, options.as_json)
@click.pass_obj
def command(obj: Invocation, /, package: str, providers: tuple[str, ...], trust_code: bool, as_json: bool) -> None:
    """Check that the folder PACKAGE is what its manifest says, and that it still computes what it did.

    First every file is hashed and looked at; only then the stored samples are run, with graph optimisation off and on.
    Needs no checkpoints, no code of the model, and no torch unless --trust-code is given.
    """
    with obj.working() as listen:
        from ensexport.package.verifying import verify_package

        report = verify_package(package, providers=providers, trust_code=trust_code, on_progress=listen)
    answer = {"command": "verify", "ok": True, **report.to_dict()}
    write_json(answer) if as_json else click.echo("\n".join(verify_lines(answer)))
