"""`python -m predictiveserver --framework sklearn|xgboost|lightgbm`: one of the three servers.

The framework's own server runs with the same arguments, so all its rules hold.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

SERVERS = {"sklearn": "sklearnserver", "xgboost": "xgbserver", "lightgbm": "lgbserver"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server of `--framework`; returns the exit code."""
    parser = argparse.ArgumentParser("predictiveserver", add_help=False, allow_abbrev=False)
    parser.add_argument("--framework", choices=sorted(SERVERS), default="sklearn")
    args, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    server = importlib.import_module(f"{SERVERS[args.framework]}.server")
    code: int = server.main(rest)
    return code
