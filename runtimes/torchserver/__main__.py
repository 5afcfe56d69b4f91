"""Entry point of `python -m torchserver`."""

import sys

from torchserver.server import main

if __name__ == "__main__":
    sys.exit(main())
