"""`python tools/eval.py --help`; the same as `resdet eval`."""

import sys

from resdet.cli import evaluate

sys.exit(evaluate())
