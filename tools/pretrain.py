"""`python tools/pretrain.py --help`; the same as `resdet pretrain`."""

import sys

from resdet.commands.pretrain import main

if __name__ == "__main__":  # a spawned worker imports this file again
    sys.exit(main())
