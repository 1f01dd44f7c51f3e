"""`python tools/visualize.py --help`; the same as `resdet visualize`."""

import sys

from resdet.cli import visualize

sys.exit(visualize())
