"""A model of TorchServe's model store behind `Model`: its archive unpacked, its handler called.

Stands in for KServe's TorchServe image. One request at a time goes to a handler, whatever the
store's batch size says. The handler's module runs with its archive as the working folder when it is
the server's only model.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelserver.errors import InferenceError, InvalidInput, LoadError
from modelserver.model import InferRequest, Model
from modelserver.oip import new_id
from torchserver.archive import Archive, Unpacked, open_archive
from torchserver.context import Context
from torchserver.envelopes import envelope_of, v1_answer, v1_rows, v2_answer, v2_rows
from torchserver.handlers import Handler, imports_from, load_handler, missing
from torchserver.model import use_allowed_threads
from torchserver.modelstore import StoredModel, read_properties, setting, stored_models
from torchserver.ts_modules import PredictionException

logger = logging.getLogger(__name__)


class ArchiveModel(Model):
    """One archive.

    Args:
        envelope: `kserve`, `kservev2` or empty.
        alone: No other model in this process.
    """

    platform = "pytorch"

    def __init__(
        self, name: str, archive: Archive, stored: StoredModel, *, envelope: str, alone: bool
    ) -> None:
        super().__init__(name)
        self._archive = archive
        self._stored = stored
        self._envelope = envelope
        self._alone = alone
        self._handler: Handler | None = None
        self._context: Context | None = None

    def load(self) -> bool:
        """Import and initialize the handler.

        Raises:
            LoadError: The archive lacks something, or its code fails.
        """
        archive = self._archive
        for key in ("serializedFile", "modelFile"):
            archive.file(key)
        if self._alone:
            os.chdir(archive.folder)
        self._context = Context(
            self.name,
            archive.folder,
            archive.manifest,
            gpu=_gpu(),
            batch_size=self._stored.batch_size,
            config=_config(archive),
        )
        use_allowed_threads()
        self._handler = load_handler(archive)
        try:
            with imports_from(archive.folder):
                self._handler.initialize(self._context)
        except LoadError as error:
            raise LoadError(f"{archive.source}: {error}") from error
        except ImportError as error:
            raise missing(archive, f"{self._handler.name}.initialize", error) from error
        except Exception as error:  # the archive's code may raise anything
            logger.exception("handler %s of model %s failed", self._handler.name, self.name)
            raise LoadError(
                f"{archive.source}: {self._handler.name}.initialize failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        self.ready = True
        return True

    def unload(self) -> None:
        """Let go of the handler and whatever it holds."""
        super().unload()
        self._handler = self._context = None

    def predict(self, request: InferRequest) -> dict[str, Any]:
        """Answer a V2 request through the handler."""
        rows = v2_rows(request, self._envelope)
        made = request.id or new_id()
        result = self._call(rows, made, request.headers)
        return v2_answer(result, self._envelope, request, self._archive.manifest, made)

    def predict_v1(self, payload: Any, headers: Mapping[str, str]) -> Any:
        """Answer a V1 request through the handler."""
        rows = v1_rows(payload, self._envelope, self.name)
        return v1_answer(self._call(rows, new_id(), headers), self._envelope, explain=False)

    def explain_v1(self, payload: Any, headers: Mapping[str, str]) -> Any:
        """Answer a V1 `:explain` request: the handler sees the header `explain: True`."""
        rows = v1_rows(payload, self._envelope, self.name)
        result = self._call(rows, new_id(), {**headers, "explain": "True"})
        return v1_answer(result, self._envelope, explain=True)

    def _call(self, rows: list[Any], request_id: str, headers: Mapping[str, str]) -> Any:
        handler, context = self._handler, self._context
        if handler is None or context is None:
            raise InferenceError(f"model '{self.name}' is not loaded")
        context.begin(request_id, headers)
        try:
            result = handler.handle(rows, context)
        except PredictionException as error:
            text = f"{error.error_code} {error.message}"
            if 400 <= error.error_code < 500:
                raise InvalidInput(text) from error
            raise InferenceError(text) from error
        except Exception as error:  # the archive's code may raise anything
            logger.exception("handler %s of model %s failed", handler.name, self.name)
            raise InferenceError(f"Prediction failed: {type(error).__name__}: {error}") from error
        status, phrase = context.get_response_status(0)
        if status >= 400:
            raise InferenceError(f"the handler answered {status} {phrase}: {result}".strip())
        return result


def _gpu() -> int | None:
    """Return 0 where PyTorch sees a GPU; the Pod's limit decides which are visible."""
    import torch

    return 0 if torch.cuda.is_available() else None


def _config(archive: Archive) -> dict[str, Any]:
    path = archive.file("configFile")
    if path is None:
        return {}
    import yaml  # only archives with a configuration need it

    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise LoadError(f"{archive.source}: {path.name} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


def open_store(store: Path, config: Path, unpacked: Unpacked) -> list[ArchiveModel]:
    """Return the models that the store's configuration names, not yet loaded.

    Raises:
        LoadError: Configuration, archive or manifest are missing or damaged.
    """
    store, config = store.resolve(), config.resolve()
    properties = read_properties(config) if store.is_dir() or config.is_file() else {}
    stored = stored_models(properties, os.environ, store)
    envelope = envelope_of(setting(properties, os.environ, "service_envelope"))
    models = []
    for item in stored:
        archive = open_archive(item.path, unpacked)
        name = item.name or archive.entry("modelName") or item.path.name.partition(".")[0]
        models.append(ArchiveModel(name, archive, item, envelope=envelope, alone=len(stored) == 1))
    return models
