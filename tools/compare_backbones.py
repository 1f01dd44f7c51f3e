"""`python tools/compare_backbones.py --help`; the same as `resdet compare-backbones`."""

import sys

from resdet.commands.compare_backbones import main

if __name__ == "__main__":  # a spawned worker imports this file again
    sys.exit(main())
