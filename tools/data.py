"""`python tools/data.py --help`; the same as `resdet data`."""

import sys

from resdet.cli import data

if __name__ == "__main__":  # a spawned worker imports this file again
    sys.exit(data())
