"""`python tools/benchmark.py --help`; the same as `resdet benchmark`."""

import sys

from resdet.commands.benchmark import main

if __name__ == "__main__":  # a spawned worker imports this file again
    sys.exit(main())
