"""Entry point of `python -m lgbserver`."""

import sys

from lgbserver.server import main

if __name__ == "__main__":
    sys.exit(main())
