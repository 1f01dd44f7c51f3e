"""`python tools/convert.py --help`; the same as `resdet convert`."""

import sys

from resdet.cli import convert

sys.exit(convert())
