"""`python tools/convert.py --help`; the same as `resdet convert`."""

import sys

from resdet.commands.convert import main

if __name__ == "__main__":  # a spawned worker imports this file again
    sys.exit(main())
