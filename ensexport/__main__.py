"""`python -m ensexport` is the `ensexport` command."""

import os
import sys

if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path and sys.path[0] == os.getcwd():
        del sys.path[0]  # as for the `ensexport` command: a torch.py in the current directory must not be imported
    from ensexport.cli import main

    main()
