"""A save of model files: new replicas for a consistent copy, once whoever writes has finished.

A trainer may write for minutes. Files count as written when two looks, some time apart, find the
same sizes and times; what a Pod then gets is a snapshot (`storage.snapshots`) that is verified.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from kserve_local.api import names
from kserve_local.devloop.replacement import Replacements
from kserve_local.devloop.workloads import ModelUse, Workloads, services_of
from kserve_local.storage.listings import digest_of, listing

logger = logging.getLogger(__name__)

_QUIET = 0.3
"""Seconds between two looks that have to find the same."""
_LONGEST = 600.0
"""A writer that never pauses for so long is taken over as it is; the copy is verified anyway."""


class ModelReload:
    """Takes saved model files over."""

    def __init__(
        self,
        project: Path,
        workloads: Workloads,
        replacements: Replacements,
    ) -> None:
        self._project = project
        self._workloads = workloads
        self._replacements = replacements
        self._known: dict[Path, str | None] = {}
        """What a place held when it was last taken over; None: nothing was there."""

    async def look(self) -> None:
        """Compare the places of models that run with what was there; take over what was saved."""
        places = {use.path for use in self._workloads.models()}
        for gone in set(self._known) - places:
            del self._known[gone]
        await asyncio.gather(*(self._look_at(place) for place in sorted(places)))

    async def _look_at(self, place: Path) -> None:
        begun = time.monotonic()
        found = await asyncio.to_thread(_digest, place)
        known = self._known.setdefault(place, found)
        if found == known:
            return
        found = await self._settled(place, found)
        if found is None or found == known:
            return  # taken away: what serves goes on, and a start says what is missing
        self._known[place] = found
        uses = [use for use in self._workloads.models() if use.path == place]
        if uses:
            await self._replace(place, uses, found, begun)

    async def _settled(self, place: Path, found: str | None) -> str | None:
        """Return what the place holds once nobody writes any more."""
        end = time.monotonic() + _LONGEST
        while time.monotonic() < end:
            await asyncio.sleep(_QUIET)
            again = await asyncio.to_thread(_digest, place)
            if again == found:
                break
            found = again
        return found

    async def _replace(
        self, place: Path, uses: Sequence[ModelUse], digest: str, begun: float
    ) -> None:
        shown = await asyncio.to_thread(os.path.relpath, place, self._project)
        await self._replacements.start(
            {use.deployment for use in uses},
            names.MODEL,
            digest,
            services_of(uses),
            reason="ModelReload",
            what=str(place) if shown.startswith("..") else shown,
            why=" for the saved model",
            begun=begun,
        )


def _digest(place: Path) -> str | None:
    """Return what a place holds, in one word; None: nothing. Blocking."""
    try:
        found = listing(place)
    except OSError:
        return None
    return digest_of(found) if found else None
