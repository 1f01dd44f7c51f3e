"""`python tools/compare.py --help`; the same as `resdet compare`."""

import sys

from resdet.commands.compare import main

if __name__ == "__main__":  # a spawned worker imports this file again
    sys.exit(main())
