"""`python tools/eval.py --help`; the same as `resdet eval`."""

import sys

from resdet.cli import evaluate

if __name__ == "__main__":  # a spawned worker imports this file again
    sys.exit(evaluate())
