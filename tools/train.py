"""`python tools/train.py --help`; the same as `resdet train`."""

import sys

from resdet.commands.train import main

if __name__ == "__main__":  # a spawned worker imports this file again
    sys.exit(main())
