"""Model files that are containers of others: PyTorch's archives, GGUF, folders of the Hugging Face.

Source: `torch.serialization` and `torch.jit.save` (members of the zip archive, the old format's
magic number), TorchServe's model archiver, GGUF's specification, transformers' `config.json`.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from kserve_local.modelfiles import pickles

TorchKind = Literal["torchscript", "export", "weights", "module", "archive"]
_OLD_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
_PICKLE_LIMIT = 64 * 1024**2
_STRING, _ARRAY = 8, 9
_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MOST_KEYS = 64
_LONGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Torch:
    """A PyTorch file.

    Args:
        name: Of the class that a pickled module needs; of the model that an archive holds.
    """

    kind: TorchKind
    name: str = ""


def torch(path: Path) -> Torch | None:
    """Return what a PyTorch file holds, None if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _zipped(archive)
    except (zipfile.BadZipFile, KeyError, ValueError, RuntimeError, NotImplementedError):
        pass
    with path.open("rb") as file:
        head = file.read(64)
    # Before 1.6: pickles one after the other, the first of them a magic number.
    return Torch("weights") if head[:2] == b"\x80\x02" and _OLD_MAGIC in head else None


def _zipped(archive: zipfile.ZipFile) -> Torch | None:
    # Members lie in one folder, which is called as the file once was.
    members = {PurePosixPath(n).name: n for n in archive.namelist()}
    if "MAR-INF/MANIFEST.json" in archive.namelist():
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))
        return Torch("archive", str((manifest.get("model") or {}).get("modelName") or ""))
    if "constants.pkl" in members:
        return Torch("torchscript")
    if "archive_format" in members or "serialized_exported_program.json" in members:
        return Torch("export")
    data = members.get("data.pkl")
    if data is None:
        return None
    if archive.getinfo(data).file_size > _PICKLE_LIMIT:
        return Torch("weights")
    try:
        top = pickles.read_stream(io.BytesIO(archive.read(data))).top
    except pickles.NotAPickle:
        return None
    return Torch("module", top.kind) if isinstance(top, pickles.Made) else Torch("weights")


def gguf(path: Path) -> Mapping[str, str] | None:
    """Return the texts of a GGUF file's first keys (`general.architecture`, ...), None if none."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return None
        found: dict[str, str] = {}
        try:
            version, _, keys = struct.unpack("<IQQ", file.read(20))
            if version < 2:
                return found
            for _ in range(min(keys, _MOST_KEYS)):
                key = _text(file)
                (kind,) = struct.unpack("<I", file.read(4))
                if kind == _STRING:
                    found[key] = _text(file)
                elif kind == _ARRAY:
                    # The vocabulary: what is asked for comes before it.
                    break
                else:
                    file.seek(_GGUF_SIZES[kind], 1)
        except (struct.error, KeyError, ValueError):
            pass
        return found


def _text(file: IO[bytes]) -> str:
    (size,) = struct.unpack("<Q", file.read(8))
    if size > _LONGEST:
        raise ValueError("too long")
    return file.read(size).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Transformer:
    """A folder of the Hugging Face.

    Args:
        task: As KServe's server calls it, empty where the configuration does not tell.
        weights: Whether weights lie there.
    """

    architecture: str
    task: str
    weights: bool


_TASKS = {
    "ForCausalLM": "text_generation",
    "ForConditionalGeneration": "text2text_generation",
    "LMHeadModel": "text_generation",
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ForMaskedLM": "fill_mask",
    "Model": "text_embedding",
}


def transformer(folder: Path) -> Transformer | None:
    """Return what a folder's `config.json` says, None if it is no model's."""
    try:
        config: Any = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or not ({"architectures", "model_type"} & config.keys()):
        return None
    names = {p.name for p in folder.iterdir()}
    weights = any(
        n.endswith(".safetensors") or (n.startswith("pytorch_model") and n.endswith(".bin"))
        for n in names
    )
    if not weights and not any(n.startswith("tokenizer") for n in names):
        return None
    known = config.get("architectures")
    first = str(known[0]) if isinstance(known, list) and known else ""
    task = next((task for ending, task in _TASKS.items() if first.endswith(ending)), "")
    return Transformer(first or str(config.get("model_type", "")), task, weights)
