"""`python tools/browse.py --help`; the same as `resdet browse`."""

import sys

from resdet.commands.browse import main

if __name__ == "__main__":  # a spawned worker imports this file again
    sys.exit(main())
