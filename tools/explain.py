"""`python tools/explain.py --help`; the same as `resdet explain`."""

import sys

from resdet.commands.explain import main

if __name__ == "__main__":  # a spawned worker imports this file again
    sys.exit(main())
