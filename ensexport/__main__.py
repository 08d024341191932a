"""`python -m ensexport` is the `ensexport` command."""

from ensexport.cli import main

main()
