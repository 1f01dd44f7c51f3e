"""`python tools/visualize.py --help`; the same as `resdet visualize`."""

import sys

from resdet.cli import visualize

if __name__ == "__main__":  # a spawned worker imports this file again
    sys.exit(visualize())
