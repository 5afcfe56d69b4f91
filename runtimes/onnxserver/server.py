"""`python -m onnxserver`: ONNX Runtime behind KServe's protocols.

Serves a plain folder (`--model_dir`, as KServe's framework servers do) or a Triton model repository
(`--model_repository DIR --layout triton`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modelserver.cli import make_parser
from modelserver.dataplane import ModelRepository
from modelserver.model import Model
from modelserver.repository import open_models
from modelserver.serve import serve
from modelserver.triton import scan
from onnxserver.model import EXTENSIONS, OnnxModel, default_threads

TRITON_BACKENDS = ("onnxruntime", "onnxruntime_onnx")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; returns the exit code."""
    parser = make_parser("onnxserver")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model_dir", help="folder of the model file")
    where.add_argument("--model_repository", help="folder of a model repository")
    parser.add_argument("--layout", choices=["triton"], default="triton")
    args, _ = parser.parse_known_args(argv)
    threads = default_threads()

    def make(name: str, folder: Path) -> OnnxModel:
        return OnnxModel(name, folder, threads=threads)

    def open_all() -> tuple[Sequence[Model], ModelRepository | None]:
        if args.model_dir:
            return open_models(args.model_dir, args.model_name, EXTENSIONS, make)
        found = scan(Path(args.model_repository), ["model.onnx"], TRITON_BACKENDS)
        return [OnnxModel(m.name, m.path, threads=threads, version=m.version) for m in found], None

    return serve(args, open_all)
