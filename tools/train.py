"""`python tools/train.py --help`; the same as `resdet train`."""

import sys

from resdet.cli import train

sys.exit(train())
