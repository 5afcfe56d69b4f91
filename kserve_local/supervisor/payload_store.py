"""Writes what loggers store: takes objects from the gateway, uploads them with their Pod's
credentials.

One at a time and in order, as the agent on a cluster; a failure is logged and told as an Event of
the Pod, and the object is lost, as there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kserve_local.api import scheme
from kserve_local.api.meta import Key, Object
from kserve_local.controllers.agent_injector import agent_of
from kserve_local.controllers.credentials import storage_config_env
from kserve_local.controllers.environment import ConfigError, NodeFacts, Sources, resolve_env
from kserve_local.controllers.pod_volumes import VolumePlaces, make_mounts, rewrite_paths
from kserve_local.errors import KServeLocalError, StorageError
from kserve_local.interfaces.storage import StoredObject
from kserve_local.settings import Settings
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store

logger = logging.getLogger(__name__)

FINISH = 5.0


class PayloadStore:
    """The uploads of one project.

    Args:
        objects: What the gateway hands over.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        recorder: EventRecorder,
        objects: asyncio.Queue[StoredObject],
        node: NodeFacts,
    ) -> None:
        self._settings = settings
        self._store = store
        self._recorder = recorder
        self._objects = objects
        self._node = node

    async def run(self) -> None:
        """Upload until cancelled."""
        while True:
            found = await self._objects.get()
            try:
                await self._upload(found)
            except Exception:
                logger.exception("%s could not be written", found.uri)
            finally:
                self._objects.task_done()

    async def finish(self) -> None:
        """Write what has come until now, for at most `FINISH` seconds; before a clean stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH):
                await self._objects.join()

    async def _upload(self, found: StoredObject) -> None:
        pod = self._store.find(Key(scheme.POD.id, found.namespace, found.pod))
        try:
            where = await asyncio.to_thread(self._write, found, pod)
            logger.debug("wrote %s", where)
        except (KServeLocalError, ConfigError) as error:
            text = error.message if isinstance(error, KServeLocalError) else str(error)
            hint = error.hint if isinstance(error, KServeLocalError) else ""
            logger.warning("logger: %s%s", text, f"; {hint}" if hint else "")
            if pod is not None:
                said = f"logger: {text}\nNext step: {hint}" if hint else f"logger: {text}"
                await self._recorder.event(pod, "Warning", "PayloadNotStored", said)

    def _write(self, found: StoredObject, pod: Object | None) -> str:
        from kserve_local.storage.upload import upload

        with tempfile.TemporaryDirectory(dir=self._settings.run_dir, prefix="upload-") as folder:
            env = self._env(pod, Path(folder)) if pod is not None else {}
            return upload(
                found.uri,
                found.data,
                user_env={**os.environ, **self._settings.storage_env},
                env=env,
                mirrors=self._settings.mirrors,
                offline=self._settings.offline,
            )

    def _env(self, pod: Object, folder: Path) -> Mapping[str, str]:
        """Return the agent's environment; files of its Secrets lie in `folder`."""
        agent = agent_of(pod)
        if agent is None:
            raise StorageError("the Pod has no agent any more")
        namespace = pod["metadata"]["namespace"]

        def of(resource: str, name: str) -> Object | None:
            return self._store.find(Key(resource, namespace, name))

        sources = Sources(
            secret=lambda name: of(scheme.SECRET.id, name),
            config_map=lambda name: of(scheme.CONFIG_MAP.id, name),
        )
        places = VolumePlaces(
            folder=folder, project=self._settings.project, claims=self._settings.claims
        )
        env: dict[str, Any] = dict(resolve_env(pod, agent, sources, self._node))
        mounts = make_mounts(pod, agent, places, sources)
        return rewrite_paths(storage_config_env(env), mounts)
