"""Entry point of `python -m onnxserver`."""

import sys

from onnxserver.server import main

if __name__ == "__main__":
    sys.exit(main())
