"""`python -m lgbserver`: KServe's LightGBM server. Always one worker, as upstream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lgbserver.model import EXTENSIONS, LightGBMModel
from modelserver.cli import make_parser
from modelserver.repository import open_models
from modelserver.serve import serve


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; returns the exit code."""
    parser = make_parser("lgbserver")
    parser.add_argument("--model_dir", required=True, help="folder of the model file")
    parser.add_argument("--nthread", type=int, default=1, help="threads per prediction")
    args, _ = parser.parse_known_args(argv)

    def make(name: str, folder: Path) -> LightGBMModel:
        return LightGBMModel(name, folder, threads=args.nthread)

    return serve(
        args,
        lambda: open_models(args.model_dir, args.model_name, EXTENSIONS, make),
        max_workers=1,
    )
