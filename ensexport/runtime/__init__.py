"""Artifact -> runner: load an exported file the way its users do and run it on NumPy arrays."""

from ensexport.runtime.runner import Runner, member_specs, open_runners, read_metadata

__all__ = ["Runner", "member_specs", "open_runners", "read_metadata"]
