"""`python -m qruntime`: the `qruntime` command."""

import sys

from qruntime.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
