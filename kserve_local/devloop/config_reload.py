"""A save of `kserve-local.yaml`: read whole; what can change while a project runs does.

Folders, mirrors, images and what is watched are taken over at once. The rest (ports, backend, ...)
belongs to processes that run, and is told.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping

from kserve_local.api import names
from kserve_local.devloop.activity import Activity
from kserve_local.devloop.problems import Problem, Problems
from kserve_local.devloop.workloads import CodeUse, Workloads
from kserve_local.errors import KServeLocalError
from kserve_local.settings import CONFIG_FILE, LIVE, Settings, fingerprint

_SUBJECT = "config"
_AGAIN = 0.1
_WAY_OUT = "takes effect after   kserve-local down   and   kserve-local up"


class ConfigReload:
    """Takes the saved configuration over.

    Args:
        load: Reads the settings again, with the flags of the start.
        profile: The profile of the start.
        take_over: Makes what is live of new settings that of all who hold the old ones.
        workloads: Where other code runs for an image from now on.
    """

    def __init__(
        self,
        settings: Settings,
        problems: Problems,
        activity: Activity,
        *,
        load: Callable[[], Settings],
        profile: str,
        take_over: Callable[[Settings], None],
        workloads: Workloads,
    ) -> None:
        self.settings = settings
        self._problems = problems
        self._activity = activity
        self._load = load
        self._profile = profile
        self._take_over = take_over
        self._workloads = workloads
        self._started: Mapping[str, str] | None = None
        self._now: Mapping[str, str] = {}

    async def look(self) -> bool:
        """Take over what was saved; True if something of it is live now."""
        error = None
        for last in (False, True):
            try:
                fresh = await asyncio.to_thread(self._load)
                now = await asyncio.to_thread(
                    fingerprint, self.settings.project, profile=self._profile, whole=True
                )
                break
            except KServeLocalError as caught:
                error = caught
                if not last:
                    await asyncio.sleep(_AGAIN)  # half saved, perhaps
        else:
            assert error is not None
            self._refuse(error.message)
            return False
        if self._started is None:
            self._started = self._now = now
            return False
        later = sorted(
            key
            for key in {*now, *self._started}
            if key not in LIVE and now.get(key) != self._started.get(key)
        )
        self._refuse(f"{', '.join(later)} {_WAY_OUT}" if later else "")
        changed = sorted(
            key for key in {*now, *self._now} if key in LIVE and now.get(key) != self._now.get(key)
        )
        self._now = now
        if not changed:
            return False
        before = {_program(use) for use in self._workloads.code()}
        self._take_over(fresh)
        for use in self._workloads.code():
            if _program(use) not in before:
                digest = hashlib.sha256(repr(_program(use)[1:]).encode()).hexdigest()[:16]
                await self._workloads.replace(use.deployment, names.CODE, digest)
        self._activity.add("applied", f"{CONFIG_FILE}: {', '.join(changed)}")
        return True

    def _refuse(self, message: str) -> None:
        message = message.removeprefix(f"{CONFIG_FILE}: ")
        problems = [Problem(CONFIG_FILE, 0, message)] if message else []
        what = "pending" if message.endswith(_WAY_OUT) else "refused"
        for fresh in self._problems.set(_SUBJECT, problems):
            self._activity.add(what, fresh.told())


def _program(use: CodeUse) -> tuple[object, ...]:
    return use.replica, use.container, use.context, use.argv
