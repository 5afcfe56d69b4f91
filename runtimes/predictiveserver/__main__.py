"""Entry point of `python -m predictiveserver`."""

import sys

from predictiveserver.server import main

if __name__ == "__main__":
    sys.exit(main())
