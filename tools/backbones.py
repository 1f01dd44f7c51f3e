"""`python tools/backbones.py --help`; the same as `resdet backbones`."""

import sys

from resdet.commands.backbones import main

if __name__ == "__main__":  # a spawned worker imports this file again
    sys.exit(main())
