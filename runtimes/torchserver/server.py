"""`python -m torchserver`: PyTorch behind KServe's protocols.

Serves a plain folder (`--model_dir`, as KServe's framework servers do), a Triton model repository
(`--model_repository DIR --layout triton`) or TorchServe's model store (`--model_repository DIR
--layout torchserve --ts_config FILE`).
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
from torchserver.archive import Unpacked
from torchserver.loading import EXTENSIONS
from torchserver.model import TorchModel
from torchserver.torchserve import open_store

TRITON_BACKENDS = ("pytorch", "pytorch_libtorch")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; returns the exit code."""
    parser = make_parser("torchserver")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model_dir", help="folder of the model file")
    where.add_argument("--model_repository", help="folder of a model repository")
    parser.add_argument("--layout", choices=["triton", "torchserve"], default="triton")
    parser.add_argument("--ts_config", default="", help="TorchServe's config.properties")
    parser.add_argument("--model_class_name", default="", help="class of a state dict's module")
    args, _ = parser.parse_known_args(argv)

    def make(name: str, folder: Path) -> TorchModel:
        return TorchModel(name, folder, class_name=args.model_class_name)

    unpacked = Unpacked()

    def open_all() -> tuple[Sequence[Model], ModelRepository | None]:
        if args.model_dir:
            return open_models(args.model_dir, args.model_name, EXTENSIONS, make)
        if args.layout == "torchserve":
            store = Path(args.model_repository)
            config = Path(args.ts_config or store.parent / "config" / "config.properties")
            return open_store(store, config, unpacked), None
        found = scan(Path(args.model_repository), ["model.pt", "model.pt2"], TRITON_BACKENDS)
        return [
            TorchModel(m.name, m.path, inputs=m.inputs, outputs=m.outputs, version=m.version)
            for m in found
        ], None

    try:
        return serve(args, open_all)
    finally:
        unpacked.close()
