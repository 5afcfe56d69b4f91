"""`python -m xgbserver`: KServe's XGBoost server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modelserver.cli import make_parser
from modelserver.repository import open_models
from modelserver.serve import serve
from xgbserver.model import EXTENSIONS, XGBoostModel


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; returns the exit code."""
    parser = make_parser("xgbserver")
    parser.add_argument("--model_dir", required=True, help="folder of the model file")
    parser.add_argument("--nthread", type=int, default=1, help="threads per prediction")
    args, _ = parser.parse_known_args(argv)

    def make(name: str, folder: Path) -> XGBoostModel:
        return XGBoostModel(name, folder, threads=args.nthread)

    return serve(args, lambda: open_models(args.model_dir, args.model_name, EXTENSIONS, make))
