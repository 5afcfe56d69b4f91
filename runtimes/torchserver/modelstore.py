"""TorchServe's model store: `config.properties`, and which archives it says to serve.

    <folder>/config/config.properties
    <folder>/model-store/<archive>.mar

As in KServe's image, the models are those of `model_snapshot`; where that is missing `load_models`
counts. Addresses, ports, thread and queue sizes in the file are TorchServe's own and mean nothing
here: KServe's port is served. Pure but for `read_properties` and listing the store.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelserver.errors import LoadError

SUFFIXES = (".mar", ".tar.gz", ".tgz")
_EXAMPLE = (
    'model_snapshot={"name": "startup.cfg", "modelCount": 1, "models": {"NAME": {"1.0": '
    '{"defaultVersion": true, "marName": "NAME.mar"}}}}'
)


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model to serve. Empty name: the manifest's; `batch_size` is only told to the handler."""

    name: str
    path: Path
    version: str = ""
    batch_size: int = 1


def read_properties(path: Path) -> dict[str, str]:
    """Return the keys and values of a Java properties file.

    Raises:
        LoadError: The file is missing or not text.
    """
    try:
        return parse_properties(path.read_text("utf-8"))
    except FileNotFoundError:
        raise LoadError(
            f"no config/{path.name} beside the model store; KServe's TorchServe image needs one. "
            f"With a line like {_EXAMPLE}"
        ) from None
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read: {error}") from error


def parse_properties(text: str) -> dict[str, str]:
    """Return keys and values: `#` and `!` begin comments, a backslash at the end joins lines."""
    found: dict[str, str] = {}
    for line in re.sub(r"\\\r?\n[ \t]*", "", text).splitlines():
        line = line.strip()
        if not line or line[0] in "#!":
            continue
        match = re.match(r"([^=:\s]+)\s*[=:\s]\s*(.*)", line)
        if match:
            found[match.group(1)] = match.group(2).strip()
    return found


def setting(properties: Mapping[str, str], env: Mapping[str, str], name: str) -> str:
    """Return a property; `TS_<NAME>` wins where the file has `enable_envvars_config=true`."""
    if properties.get("enable_envvars_config", "").lower() == "true":
        value = env.get(f"TS_{name.upper()}")
        if value:
            return value
    return properties.get(name, "")


def stored_models(
    properties: Mapping[str, str], env: Mapping[str, str], store: Path
) -> list[StoredModel]:
    """Return the models to serve, by name.

    Raises:
        LoadError: No model is named, an archive is missing, or the snapshot is damaged.
    """
    if not store.is_dir():
        raise LoadError(
            f"no folder {store.name} in the model directory; KServe's TorchServe image needs "
            "model-store/NAME.mar and config/config.properties. A plain .pt, .pt2 or .pth file is "
            "served by the runtime kserve-local-torchserver"
        )
    snapshot = setting(properties, env, "model_snapshot")
    models = _of_snapshot(snapshot, store) if snapshot else []
    if not models:
        models = _of_load_models(setting(properties, env, "load_models"), store)
    if not models:
        have = ", ".join(p.name for p in _archives(store)) or "no archive"
        raise LoadError(
            f"config.properties names no model to load ({store.name} holds {have}). Add a line "
            f"like {_EXAMPLE}"
        )
    return models


def _archives(store: Path) -> list[Path]:
    return sorted(
        p
        for p in store.iterdir()
        if p.name.endswith(SUFFIXES) or (p / "MAR-INF" / "MANIFEST.json").is_file()
    )


def _archive(store: Path, name: str) -> Path:
    path = store / name
    if "/" in name or name in ("", ".", "..") or not path.exists():
        have = ", ".join(p.name for p in _archives(store)) or "none"
        raise LoadError(f"archive '{name}' is not in {store.name}; there: {have}")
    return path


def _of_snapshot(text: str, store: Path) -> list[StoredModel]:
    try:
        models = json.loads(text).get("models", {})
        found = []
        for name, versions in sorted(models.items()):
            version = _default_version(versions)
            wanted = versions[version]
            batch = int(wanted.get("batchSize", 1))
            found.append(StoredModel(name, _archive(store, wanted["marName"]), version, batch))
    except LoadError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise LoadError(
            f"config.properties: model_snapshot cannot be read ({type(error).__name__}: {error}); "
            f"expected a line like {_EXAMPLE}"
        ) from error
    return found


def _default_version(versions: Mapping[str, Mapping[str, Any]]) -> str:
    named = [v for v, settings in versions.items() if settings.get("defaultVersion")]
    if named:
        return named[0]
    return max(versions, key=lambda v: [int(n) for n in re.findall(r"\d+", v)])


def _of_load_models(text: str, store: Path) -> list[StoredModel]:
    if text.lower() in ("", "none", "n/a"):
        return []
    if text.lower() == "all":
        return [StoredModel("", path) for path in _archives(store)]
    found = []
    for item in text.split(","):
        name, equals, file = item.strip().partition("=")
        found.append(StoredModel(name if equals else "", _archive(store, file or name)))
    return found
