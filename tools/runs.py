"""`python tools/runs.py --help`; the same as `resdet runs`."""

import sys

from resdet.commands.runs import main

if __name__ == "__main__":  # a spawned worker imports this file again
    sys.exit(main())
