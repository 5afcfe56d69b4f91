"""`python -m sklearnserver`: KServe's scikit-learn server."""

from __future__ import annotations

from collections.abc import Sequence

from modelserver.cli import make_parser
from modelserver.repository import open_models
from modelserver.serve import serve
from sklearnserver.model import EXTENSIONS, SKLearnModel


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; returns the exit code."""
    parser = make_parser("sklearnserver")
    parser.add_argument("--model_dir", required=True, help="folder of the model file")
    args, _ = parser.parse_known_args(argv)
    return serve(
        args, lambda: open_models(args.model_dir, args.model_name, EXTENSIONS, SKLearnModel)
    )
