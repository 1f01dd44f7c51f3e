"""`python tools/data.py --help`; the same as `resdet data`."""

import sys

from resdet.cli import data

sys.exit(data())
