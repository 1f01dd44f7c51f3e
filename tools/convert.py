"""`python tools/convert.py --help`; the same as `resdet convert`."""

import sys

from resdet.cli import convert

if __name__ == "__main__":  # a spawned worker imports this file again
    sys.exit(convert())
