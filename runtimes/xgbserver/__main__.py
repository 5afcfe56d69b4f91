"""Entry point of `python -m xgbserver`."""

import sys

from xgbserver.server import main

if __name__ == "__main__":
    sys.exit(main())
