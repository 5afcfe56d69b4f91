"""Puts the dev loop together: what of `settings` is live, and who carries a save out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from kserve_local import settings as configuration
from kserve_local.aio import running
from kserve_local.client.client import Client
from kserve_local.controllers.standins import is_known
from kserve_local.devloop.activity import Activity
from kserve_local.devloop.changed_answers import ChangedAnswers
from kserve_local.devloop.code_reload import CodeReload
from kserve_local.devloop.config_reload import ConfigReload
from kserve_local.devloop.loop import DevLoop
from kserve_local.devloop.manifest_reload import ManifestReload
from kserve_local.devloop.model_reload import ModelReload
from kserve_local.devloop.problems import Problems
from kserve_local.devloop.replacement import Replacements
from kserve_local.interfaces.backend import Backend
from kserve_local.settings import Settings
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store
from kserve_local.supervisor.dev_workloads import DevWorkloads


class _Live:
    """The settings as they are now: what may change while the project runs changes here.

    Mappings are changed in place, because everybody holds the same ones.
    """

    def __init__(self, settings: Settings, taken_over: Callable[[Settings], None]) -> None:
        self.now = settings
        self._taken_over = taken_over

    def take_over(self, fresh: Settings) -> None:
        for name in ("images", "mirrors", "claims", "runtimes"):
            held: Any = getattr(self.now, name)
            held.clear()
            held.update(getattr(fresh, name))
        self.now = replace(
            self.now,
            resources=fresh.resources,
            ignore=fresh.ignore,
            watching=fresh.watching,
            requests=fresh.requests,
        )
        self._taken_over(self.now)


def _nothing(services: Collection[tuple[str, str]], saved_at: float) -> None:
    """Answers are not compared."""


@asynccontextmanager
async def watching(
    settings: Settings,
    started_with: Mapping[str, Any],
    store: Store,
    backend: Backend,
    recorder: EventRecorder,
    problems: Problems,
    activity: Activity,
    *,
    taken_over: Callable[[Settings], None],
) -> AsyncIterator[None]:
    """Take saves over while the block is open.

    Args:
        started_with: `flags` and `profile` of the start, with which the configuration is read.
        taken_over: Called with settings of which something is live that was not.
    """
    live = _Live(settings, taken_over)
    workloads = DevWorkloads(settings, store, backend, recorder)
    profile = str(started_with.get("profile") or "")
    flags = dict(started_with.get("flags") or {})

    def load() -> Settings:
        return configuration.load(settings.project, profile=profile, **flags)

    config = ConfigReload(
        settings,
        problems,
        activity,
        load=load,
        profile=profile,
        take_over=live.take_over,
        workloads=workloads,
    )
    async with Client.from_kubeconfig(settings.kubeconfig) as client:
        answers = ChangedAnswers(client, workloads, activity)
        after = answers.after if settings.replay and settings.requests.enabled else _nothing
        manifests = ManifestReload(
            client,
            problems,
            activity,
            settings=lambda: live.now,
            stands_in=lambda image: is_known(image, live.now.images),
        )
        replacements = Replacements(workloads, activity, after)
        loop = DevLoop(
            workloads,
            settings=lambda: live.now,
            config=config,
            manifests=manifests,
            code=CodeReload(
                settings.project,
                workloads,
                problems,
                activity,
                replacements,
                swaps=lambda: live.now.watching.code == "swap",
                after=after,
            ),
            models=ModelReload(settings.project, workloads, replacements),
        )
        await loop.begin()
        async with running(loop.run(), name="dev-loop"):
            try:
                yield
            finally:
                await activity.close()
