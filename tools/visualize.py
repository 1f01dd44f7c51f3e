"""`python tools/visualize.py --help`; the same as `resdet visualize`."""

import sys

from resdet.commands.visualize import main

if __name__ == "__main__":  # a spawned worker imports this file again
    sys.exit(main())
