"""`python tools/eval.py --help`; the same as `resdet eval`."""

import sys

from resdet.commands.eval import main

if __name__ == "__main__":  # a spawned worker imports this file again
    sys.exit(main())
