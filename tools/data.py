"""`python tools/data.py --help`; the same as `resdet data`."""

import sys

from resdet.commands.data import main

if __name__ == "__main__":  # a spawned worker imports this file again
    sys.exit(main())
