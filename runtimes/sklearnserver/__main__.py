"""Entry point of `python -m sklearnserver`."""

import sys

from sklearnserver.server import main

if __name__ == "__main__":
    sys.exit(main())
