"""The command line: a thin skin on the library. One file per command; errors are caught once, in `root.py`."""

from ensexport.cli.root import cli, main

__all__ = ["cli", "main"]
