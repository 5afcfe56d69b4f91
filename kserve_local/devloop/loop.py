"""The inner loop: watches the project and lets each kind of change be taken over.

Saves come in batches from the watcher. YAML and configuration, code, and models are looked at by a
worker each, so that a trainer that writes for minutes keeps no edit waiting. A worker compares what
lies there with what was taken over: a batch only wakes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from kserve_local.devloop.code_reload import CodeReload
from kserve_local.devloop.config_reload import ConfigReload
from kserve_local.devloop.manifest_reload import ManifestReload
from kserve_local.devloop.model_reload import ModelReload
from kserve_local.devloop.watcher import Watcher, Watching
from kserve_local.devloop.workloads import Workloads
from kserve_local.settings import CONFIG_FILE, Settings

logger = logging.getLogger(__name__)

_TOGETHER = 0.2
"""Seconds: Pods that come or go together are looked at once."""
_LONGEST_QUIET = 2.0
_MANIFESTS = (".yaml", ".yml", ".json")
_COUNT = (".py", *_MANIFESTS)


class DevLoop:
    """One project's inner loop.

    Args:
        settings: Returns the settings as they are now.
    """

    def __init__(
        self,
        workloads: Workloads,
        *,
        settings: Callable[[], Settings],
        config: ConfigReload,
        manifests: ManifestReload,
        code: CodeReload,
        models: ModelReload,
    ) -> None:
        self._workloads = workloads
        self._settings = settings
        self._config = config
        self._manifests = manifests
        self._code = code
        self._models = models
        self._batches: asyncio.Queue[frozenset[Path]] = asyncio.Queue()
        self._due = {name: asyncio.Event() for name in ("yaml", "code", "models")}
        self._watcher = Watcher(self._watching, self._batches.put_nowait)
        self._roots: frozenset[Path] = frozenset()

    async def begin(self) -> None:
        """Have replicas that outlived a supervisor replaced for the code that was saved since.

        Before the project is said to run: who started it is to see that they are.
        """
        await self._guarded("code", self._look_at_code)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watcher.run(), name="watcher")
            tasks.create_task(self._hand_out(), name="saves")
            tasks.create_task(self._follow_roots(), name="watched-folders")
            for name, work in (
                ("yaml", self._look_at_yaml),
                ("code", self._look_at_code),
                ("models", self._look_at_models),
            ):
                tasks.create_task(self._work(name, work), name=f"reload-{name}")

    def _watching(self) -> Watching:
        settings = self._settings()
        self._roots = self._wanted_roots(settings)
        watching = settings.watching
        return Watching(
            settings.project,
            self._roots,
            ignore=watching.ignore,
            poll=watching.poll,
        )

    def _wanted_roots(self, settings: Settings) -> frozenset[Path]:
        """Return the project's folder, and what is to be watched and does not lie in it."""
        places = {
            *(path for path in settings.resources if path != Path("-")),
            *self._workloads.contexts(),
            *(use.path for use in self._workloads.models()),
        }
        outside = {p for p in places if settings.project not in p.parents}
        return frozenset({settings.project, *outside})

    async def _follow_roots(self) -> None:
        while True:
            await self._workloads.changed()
            await asyncio.sleep(_TOGETHER)
            if self._wanted_roots(self._settings()) != self._roots:
                self._watcher.look_again()
            # Pods that came since: what they serve is what is there now.
            self._due["models"].set()
            self._due["code"].set()

    async def _hand_out(self) -> None:
        """Wake the workers that a save may concern."""
        while True:
            batch = await self._batches.get()
            if is_several(batch):
                batch |= await self._until_quiet()
            for name in _kinds(batch, self._workloads):
                self._due[name].set()

    async def _until_quiet(self) -> frozenset[Path]:
        """Return what else is saved until nothing was for a while: a checkout is one change."""
        more: frozenset[Path] = frozenset()
        quiet = self._settings().watching.quiet
        end = asyncio.get_running_loop().time() + _LONGEST_QUIET
        while asyncio.get_running_loop().time() < end:
            try:
                async with asyncio.timeout(quiet):
                    more |= await self._batches.get()
            except TimeoutError:
                break
        return more

    async def _work(self, name: str, look: Callable[[], Awaitable[object]]) -> None:
        due = self._due[name]
        while True:
            await due.wait()
            due.clear()
            await self._guarded(name, look)

    async def _guarded(self, name: str, look: Callable[[], Awaitable[object]]) -> None:
        try:
            await look()
        except Exception:
            # The next save is looked at all the same.
            logger.exception("a save of %s was not taken over", name)

    async def _look_at_code(self) -> None:
        if self._settings().watching.code != "off":
            await self._code.look()

    async def _look_at_models(self) -> None:
        if self._settings().watching.model:
            await self._models.look()

    async def _look_at_yaml(self) -> None:
        if await self._config.look():
            self._watcher.look_again()
            self._due["code"].set()
        settings = self._settings()
        if settings.watching.manifests and settings.resources != (Path("-"),):
            await self._manifests.look()


def is_several(batch: frozenset[Path]) -> bool:
    """Whether several files were saved together, so that more may be on their way.

    The one that many editors write first, to put it in the other's place, is none of them.
    """
    files = sum(path.suffix.lower() in _COUNT for path in batch)
    return files > 1 or (len(batch) > 1 and files + sum(p.is_dir() for p in batch) > 1)


def _kinds(batch: frozenset[Path], workloads: Workloads) -> set[str]:
    """Return which workers a save concerns; an empty batch may be about anything."""
    if not batch:
        return {"yaml", "code", "models"}
    kinds = set()
    models = {use.path for use in workloads.models()}
    for path in batch:
        if path.name == CONFIG_FILE or path.suffix.lower() in _MANIFESTS or path.suffix == "":
            kinds.add("yaml")
        if path.suffix in (".py", ""):
            kinds.add("code")
        if any(m == path or m in path.parents or path in m.parents for m in models):
            kinds.add("models")
    return kinds
