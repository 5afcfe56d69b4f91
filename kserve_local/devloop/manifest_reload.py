"""A save of YAML: read and reviewed whole, tried on the server whole, then applied.

A file that is broken, empty or refused changes nothing. What a file held and holds no more is
deleted, if it came from there.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from kserve_local.api import names, scheme
from kserve_local.api.manifest import load
from kserve_local.api.meta import Key, Object, annotations_of, name_of, namespace_of
from kserve_local.client.client import Client
from kserve_local.devloop.activity import Activity
from kserve_local.devloop.problems import Problem, Problems
from kserve_local.errors import KServeLocalError, NotFound
from kserve_local.project.project_files import ProjectFiles, load_project, missing_namespaces
from kserve_local.settings import Settings

_SUBJECT = "manifests"
_FRESH = 0.06
"""Seconds: a file written this moment may still be written to; it is read again after them."""
_REALLY_GONE = 0.3
"""Seconds after which what has vanished is looked for once more before it is deleted."""
_TRIES = 20


class ManifestReload:
    """Takes saved YAML over.

    Args:
        settings: Returns the project's settings as they are now.
        stands_in: See `load_project`.
    """

    def __init__(
        self,
        client: Client,
        problems: Problems,
        activity: Activity,
        *,
        settings: Callable[[], Settings],
        stands_in: Callable[[str], bool],
    ) -> None:
        self._client = client
        self._problems = problems
        self._activity = activity
        self._settings = settings
        self._stands_in = stands_in
        self._applied: dict[Key, Object] | None = None
        """As read from the files; None before the first look, when `up` applies them."""

    async def look(self) -> None:
        """Compare the files with what was applied, and take over what was saved."""
        try:
            project = await self._read()
        except KServeLocalError as error:
            emptied = await asyncio.to_thread(self._half_saved, set())
            self._refuse(emptied or [Problem("", 0, f"{error.message}; nothing is changed")])
            self._begin()
            return
        broken = await asyncio.to_thread(self._broken, project)
        if broken:
            self._refuse(broken)
            self._begin()
            return
        wanted = {scheme.key_of(obj): obj for obj in project.objects}
        if self._applied is None:
            self._applied = wanted
            return
        changed = [o for k, o in wanted.items() if self._applied.get(k) != o]
        vanished = [k for k in self._applied if k not in wanted]
        if vanished:
            await asyncio.sleep(_REALLY_GONE)
            again = await self._read_or_none()
            if again is None or {scheme.key_of(o) for o in again.objects} != set(wanted):
                return await self.look()
        refused = await self._try(changed)
        if refused:
            self._refuse(refused)
            return
        self._refuse(await self._apply(changed))
        for key in vanished:
            await self._delete(key)

    def _begin(self) -> None:
        """What is mended after a first look at broken files is applied like every save."""
        if self._applied is None:
            self._applied = {}

    def _refuse(self, problems: Sequence[Problem]) -> None:
        for fresh in self._problems.set(_SUBJECT, problems):
            self._activity.add("refused", fresh.told(), services=fresh.services)

    async def _read(self) -> ProjectFiles:
        """Return what the files hold, none of them while it is being written.

        Raises:
            KServeLocalError: They cannot be read.
        """
        error: KServeLocalError | None = None
        for _ in range(_TRIES):
            try:
                project = await asyncio.to_thread(load_project, self._settings(), self._stands_in)
            except KServeLocalError as caught:
                # A file that is just being put in another's place is not there for a moment.
                if error is not None:
                    raise
                error = caught
                await asyncio.sleep(_FRESH)
                continue
            fresh = _FRESH - (time.time() - _newest(project))
            if not 0 < fresh <= _FRESH:
                return project
            await asyncio.sleep(fresh)
        return project

    async def _read_or_none(self) -> ProjectFiles | None:
        try:
            return await self._read()
        except KServeLocalError:
            return None

    def _broken(self, project: ProjectFiles) -> list[Problem]:
        """Return what of the files a cluster would refuse, and files that look half saved."""
        root = self._settings().project
        held = self._held()
        found = []
        for report in project.reports:
            file = os.path.relpath(Path(report.path).resolve(), root)
            services = tuple(sorted(_name(o) for o in held.get(file, ())))
            found += [
                Problem(file, f.line, "; ".join((f.message, *f.details)), services)
                for f in report.findings
                if f.refuses
            ]
        read = {os.path.relpath(Path(r.path).resolve(), root) for r in project.reports}
        return found + self._half_saved(read)

    def _held(self) -> dict[str, list[Object]]:
        """Return what each file held when it was last taken over."""
        held: dict[str, list[Object]] = {}
        for obj in (self._applied or {}).values():
            held.setdefault(annotations_of(obj).get(names.MANIFEST, ""), []).append(obj)
        return held

    def _half_saved(self, read: Collection[str]) -> list[Problem]:
        """Return the files that held objects and look half saved now.

        Args:
            read: Those whose documents are in the review already.
        """
        found = []
        for file, objects in self._held().items():
            why = _half_saved(self._settings().project / file, was_read=file in read)
            if why is not None:
                found.append(Problem(file, *why, tuple(sorted(map(_name, objects)))))
        return found

    async def _try(self, changed: Sequence[Object]) -> list[Problem]:
        """Return what the server refuses of the objects; nothing is written."""
        found = []
        new = set(missing_namespaces(changed))
        for obj in changed:
            try:
                await self._client.apply(obj, dry_run=True)
            except NotFound as error:
                if namespace_of(obj) not in new:
                    found.append(_refusal(obj, error))
            except KServeLocalError as error:
                found.append(_refusal(obj, error))
        return found

    async def _apply(self, changed: Sequence[Object]) -> list[Problem]:
        """Send the objects; return what was refused all the same."""
        assert self._applied is not None
        found = []
        for namespace in missing_namespaces(changed):
            await self._client.apply(
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
            )
        for obj in changed:
            try:
                _, what = await self._client.apply(obj)
            except KServeLocalError as error:
                found.append(_refusal(obj, error))
                continue
            self._applied[scheme.key_of(obj)] = obj
            if what != "unchanged":
                text = f"{obj['kind']} {name_of(obj)} {what}"
                self._activity.add("applied", text, services=[_name(obj)])
        return found

    async def _delete(self, key: Key) -> None:
        """Delete an object that its file holds no more."""
        assert self._applied is not None
        before = self._applied.pop(key)
        kind = scheme.of(before)
        file = annotations_of(before).get(names.MANIFEST)
        try:
            there = await self._client.get(kind, key.name, key.namespace or None)
            if annotations_of(there).get(names.MANIFEST) != file:
                return  # somebody has applied it from elsewhere since
            await self._client.delete(kind, key.name, key.namespace or None)
        except NotFound:
            return
        text = f"{kind.kind} {key.name} deleted: {file} holds it no more"
        self._activity.add("deleted", text, services=[_name(before)])


def _name(obj: Object) -> tuple[str, str]:
    return namespace_of(obj), name_of(obj)


def _refusal(obj: Object, error: KServeLocalError) -> Problem:
    file = annotations_of(obj).get(names.MANIFEST, "")
    return Problem(file, 0, f"{obj['kind']} {name_of(obj)}: {error.message}", (_name(obj),))


def _newest(project: ProjectFiles) -> float:
    """Return when the youngest of the files was written. Blocking, a stat each."""
    times: Mapping[str, float] = {r.path: _written(r.path) for r in project.reports}
    return max(times.values(), default=0.0)


def _written(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _half_saved(path: Path, *, was_read: bool) -> tuple[int, str] | None:
    """Return line and message if a file that held objects looks as if it were being saved.

    Args:
        was_read: Its documents are in the review already.
    """
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return None  # deleted, with its objects
    if not text.strip():
        return 0, "the file is empty; delete it to delete its objects"
    if was_read:
        return None
    for document in load(text, str(path)):
        if document.error is not None:
            return document.error.position[0], document.error.message
    return None
