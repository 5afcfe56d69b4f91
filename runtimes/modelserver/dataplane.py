"""The registered models and what can be asked of them, whatever protocol asks.

Owns one `Runner` per model. A repository (several models in one folder) can load and unload names;
a single-model server can only unload, as upstream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Literal, Protocol

from modelserver.batching import TRIALS, Runner
from modelserver.errors import ModelNotFound, ModelNotReady
from modelserver.metrics import ModelMetrics, Registry
from modelserver.model import Model, RowModel

logger = logging.getLogger(__name__)


class ModelRepository(Protocol):
    """Makes models by name, for the repository API."""

    def create(self, name: str) -> Model:
        """Return the (not yet loaded) model called `name`.

        Raises:
            LoadError: There is no such model.
        """


class Served:
    """A registered model with its queue and metrics; `rows` is the model if it is a `RowModel`."""

    __slots__ = ("metrics", "model", "rows", "runner")

    def __init__(self, model: Model, runner: Runner, metrics: ModelMetrics) -> None:
        self.model = model
        self.rows = model if isinstance(model, RowModel) else None
        self.runner = runner
        self.metrics = metrics


class DataPlane:
    """Models by name.

    Args:
        repository: None for a single-model server.
        batching: Which models may answer several requests in one call: `auto` those that say they
            can (`RowModel.batchable`), `true` every `RowModel`, `false` none.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        repository: ModelRepository | None = None,
        batching: Literal["auto", "true", "false"] = "auto",
    ) -> None:
        self._loop = loop
        self._repository = repository
        self._batching = batching
        self._models: dict[str, Served] = {}
        self.metrics = Registry()

    def register(self, models: Iterable[Model]) -> None:
        """Add models, or put them in the place of those with the same names."""
        for model in models:
            runner = Runner(
                self._loop,
                model.name,
                batching=self._shares(model),
                trials=0 if self._batching == "true" else TRIALS,
            )
            before = self._models.get(model.name)
            self._models[model.name] = Served(model, runner, self.metrics.model(model.name))
            if before is not None:
                before.runner.close()

    def _shares(self, model: Model) -> bool:
        if self._batching == "false" or not isinstance(model, RowModel):
            return False
        return self._batching == "true" or model.batchable

    def names(self) -> list[str]:
        """Return the names of all registered models, ready or not."""
        return list(self._models)

    def get(self, name: str) -> Served:
        """Return a registered model.

        Raises:
            ModelNotFound: There is none of that name.
        """
        served = self._models.get(name)
        if served is None:
            raise ModelNotFound(name, self._models)
        return served

    def get_ready(self, name: str) -> Served:
        """Return a registered model that can predict.

        Raises:
            ModelNotFound: There is none of that name.
            ModelNotReady: It cannot.
        """
        served = self._models.get(name)
        if served is None:
            raise ModelNotFound(name, self._models)
        if not served.model.healthy():
            raise ModelNotReady(name)
        return served

    async def load(self, name: str) -> None:
        """Load a model of the repository (again); the one in use serves until the new one is ready.

        Raises:
            ModelNotReady: It did not load, or this server has no repository and no such model.
        """
        if self._repository is None:
            served = self._models.get(name)
            if served is None or not served.model.healthy():
                raise ModelNotReady(name)
            return
        try:
            model = self._repository.create(name)
            ready = await asyncio.to_thread(model.load)
        except Exception as error:
            logger.exception("model %s could not be loaded", name)
            raise ModelNotReady(name, f"Error type: {type(error)} error msg: {error}") from error
        if not ready:
            raise ModelNotReady(name)
        self.register([model])

    def unload(self, name: str) -> None:
        """Forget a model; requests already accepted are still answered.

        Raises:
            ModelNotFound: There is none of that name.
        """
        served = self._models.pop(name, None)
        if served is None:
            raise ModelNotFound(name, self._models)
        # Not `model.unload()` yet: accepted requests still hold it, and it goes with the last.
        served.runner.close()

    def close(self) -> None:
        """End worker threads and let models go."""
        for served in self._models.values():
            served.runner.close()
            served.model.unload()
