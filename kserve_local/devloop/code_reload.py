"""A save of the user's code: functions go into running replicas, anything else starts new ones.

`code_change` decides, every replica checks, then all commit. What cannot be swapped is replaced:
new Pods start behind the old ones, which serve until the new ones do. Broken code changes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kserve_local.api import names
from kserve_local.devloop import code_change
from kserve_local.devloop.activity import Activity
from kserve_local.devloop.code_files import CodeFolder, entry_of, imported
from kserve_local.devloop.problems import Problem, Problems
from kserve_local.devloop.replacement import After, Replacements
from kserve_local.devloop.workloads import CodeUse, Workloads, services_of
from kserve_local.interfaces.code import CodeChange

logger = logging.getLogger(__name__)

_SETTLE = 0.12
"""Seconds: a file this fresh that is broken may be half saved; it is read once more."""
_QUIET = 0.05
"""Seconds without a save after which new replicas are started."""
_SHOWN = 3


@dataclass
class _Code:
    """One folder of code.

    Args:
        served: What the replicas were last made to run.
        programs: The arguments of those that ran from it; at zero replicas they still tell which
            files count.
    """

    folder: CodeFolder
    served: dict[str, str]
    programs: set[tuple[str, ...]] = field(default_factory=set)


class CodeReload:
    """Takes saved code over.

    Args:
        swaps: Whether functions may be replaced in place.
    """

    def __init__(
        self,
        project: Path,
        workloads: Workloads,
        problems: Problems,
        activity: Activity,
        replacements: Replacements,
        *,
        swaps: Callable[[], bool],
        after: After,
    ) -> None:
        self._project = project
        self._workloads = workloads
        self._problems = problems
        self._activity = activity
        self._swaps = swaps
        self._after = after
        self._known: dict[Path, _Code] = {}
        self._salt = secrets.token_hex(4)
        self._replacements = replacements

    async def look(self) -> None:
        """Compare every folder of code with what is served, and take over what was saved."""
        contexts = set(self._workloads.contexts())
        for gone in set(self._known) - contexts:
            del self._known[gone]
            self._problems.set(f"code {gone}", ())
        for context in sorted(contexts):
            await self._look_at(context)

    async def _look_at(self, context: Path) -> None:
        known = self._known.get(context)
        if known is None:
            folder = CodeFolder(context)
            known = self._known[context] = _Code(folder, await asyncio.to_thread(folder.read))
            await self._compare_with_running(context, known)
        begun = time.monotonic()
        saved = await asyncio.to_thread(known.folder.read)
        fresh = {u.argv for u in self._workloads.code() if u.context == context} - known.programs
        known.programs |= fresh
        if fresh:
            await asyncio.to_thread(_prepare, known.served, fresh)
        if saved == known.served:
            self._mended(context)
            return
        uses = [use for use in self._workloads.code() if use.context == context]
        verdict, saved = await self._decide(context, known, saved)
        services = services_of(uses)
        if isinstance(verdict, code_change.Broken):
            await self._broken(context, verdict, services)
            return
        self._mended(context)
        before, known.served = known.served, saved
        if isinstance(verdict, code_change.Nothing) or not uses:
            return
        digest = _digest(saved, self._salt)
        # Those whose program has no part in what was saved go on.
        uses = [use for use in uses if _is_touched(use, before, saved)]
        services = services_of(uses)
        if not uses:
            return
        if isinstance(verdict, code_change.Swap):
            why = await self._swap(context, uses, verdict.change, begun)
            if not why:
                # A template's digest is no longer what its Pods run: none may be met again.
                self._salt = secrets.token_hex(4)
                self._after(services, time.time() - (time.monotonic() - begun))
                return
        else:
            why = f"{self._shown(context, verdict.file, verdict.line)}: {verdict.reason}"
        await self._replace(uses, digest, why, _changed(before, saved), begun)

    async def _compare_with_running(self, context: Path, known: _Code) -> None:
        """Replace what runs other code than lies there: replicas that outlived a supervisor."""
        begun = time.monotonic()
        stale: list[CodeUse] = []
        for use in self._workloads.code():
            if use.context != context or not use.ready or use.fixed:
                continue
            parts = imported(entry_of(use.argv, known.served), known.served)
            text = {file: known.served[file] for file in parts}
            change = CodeChange(secrets.token_hex(4), text, text)
            if (await self._workloads.check(use, change)).refused:
                stale.append(use)
        if stale:
            why = "it was changed while nobody watched"
            shown = f"code in {self._relative(context)}"
            await self._replace(stale, _digest(known.served, self._salt), why, [shown], begun)

    async def _decide(
        self, context: Path, known: _Code, saved: dict[str, str]
    ) -> tuple[code_change.Verdict, dict[str, str]]:
        """Return what to do, and the text it is about."""
        for last in (False, True):
            verdict = await asyncio.to_thread(_verdict, known.served, saved, known.programs)
            if not isinstance(verdict, code_change.Broken) or last:
                break
            fresh = time.time() - _written(context / verdict.file)
            if not 0 <= fresh < _SETTLE:
                break
            await asyncio.sleep(_SETTLE - fresh)
            saved = await asyncio.to_thread(known.folder.read)
        while isinstance(verdict, code_change.Restart):
            # New replicas take longer than this: the rest of a checkout goes with them.
            await asyncio.sleep(_QUIET)
            again = await asyncio.to_thread(known.folder.read)
            if again == saved:
                break
            saved = again
            verdict = await asyncio.to_thread(_verdict, known.served, saved, known.programs)
        return verdict, saved

    async def _broken(
        self, context: Path, broken: code_change.Broken, services: Sequence[tuple[str, str]]
    ) -> None:
        problem = Problem(
            self._relative(context / broken.file), broken.line, broken.error, tuple(services)
        )
        for fresh in self._problems.set(f"code {context}", [problem]):
            self._activity.add("refused", fresh.told(), services=services)
            for namespace, service in services:
                await self._workloads.tell(
                    namespace,
                    service,
                    "Warning",
                    "ReloadFailed",
                    f"{fresh.told()}; the code of before goes on serving",
                )

    def _mended(self, context: Path) -> None:
        self._problems.set(f"code {context}", ())

    async def _swap(
        self, context: Path, uses: Sequence[CodeUse], change: CodeChange, begun: float
    ) -> str:
        """Put a change into all replicas; return why it could not be done, empty if it was."""
        if not self._swaps():
            return "watch.onCodeChange is restart"
        for use in uses:
            if use.fixed:
                return use.fixed
            if not use.ready:
                return f"Pod {use.pod} was just starting"
        work = self._workloads
        # One that stands alone checks when it commits: to look for its functions takes longest.
        if len(uses) > 1:
            verdicts = await asyncio.gather(*(work.check(use, change) for use in uses))
            for use, verdict in zip(uses, verdicts, strict=True):
                if verdict.refused:
                    return f"Pod {use.pod}: {verdict.refused}"
        done = await asyncio.gather(*(work.commit(use, change) for use in uses))
        for use, verdict in zip(uses, done, strict=True):
            if verdict.refused:
                return f"Pod {use.pod}: {verdict.refused}"
        if not any(verdict.functions for verdict in done):
            return ""  # no process has loaded the file: nothing to tell
        took = round((time.monotonic() - begun) * 1000)
        what = _functions(change) or ", ".join(sorted(change.after))
        text = f"{what} replaced in place, the model stays loaded"
        services = services_of(uses)
        self._activity.add("swapped", text, services=services, ms=took)
        for namespace, service in services:
            await work.tell(namespace, service, "Normal", "CodeSwapped", f"{text} ({took} ms)")
        return ""

    async def _replace(
        self,
        uses: Sequence[CodeUse],
        digest: str,
        why: str,
        changed: Sequence[str],
        begun: float,
    ) -> None:
        """Start new replicas for the code and say why."""
        await self._replacements.start(
            {use.deployment for use in uses},
            names.CODE,
            digest,
            services_of(uses),
            reason="CodeReload",
            what=", ".join(changed[:_SHOWN]) + (", ..." if len(changed) > _SHOWN else ""),
            why=f", because {why}",
            begun=begun,
        )

    def _shown(self, context: Path, file: str, line: int) -> str:
        place = self._relative(context / file) if file else ""
        return f"{place}:{line}" if line else place

    def _relative(self, path: Path) -> str:
        shown = os.path.relpath(path, self._project)
        return str(path) if shown.startswith("..") else shown


def _verdict(
    before: Mapping[str, str], after: Mapping[str, str], programs: Collection[tuple[str, ...]]
) -> code_change.Verdict:
    """Decide about the files that are part of a program, running or not. Pure."""
    parts: set[str] = set()
    for argv in programs:
        entry = entry_of(argv, before)
        if entry is not None and entry not in after:
            return code_change.Broken(entry, 0, "the file that the program begins with is gone")
        parts |= imported(entry, before) | imported(entry_of(argv, after), after)
    return code_change.decide(
        {f: t for f, t in before.items() if f in parts},
        {f: t for f, t in after.items() if f in parts},
        id=secrets.token_hex(4),
    )


def _prepare(files: Mapping[str, str], programs: Collection[tuple[str, ...]]) -> None:
    parts = {f for argv in programs for f in imported(entry_of(argv, files), files)}
    code_change.learn({f: files[f] for f in parts})


def _is_touched(use: CodeUse, before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    """Whether a container's program has a part in what was saved. Pure."""
    parts = imported(entry_of(use.argv, before), before) | imported(
        entry_of(use.argv, after), after
    )
    return any(before.get(f) != after.get(f) for f in parts)


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return sorted(f for f in {*before, *after} if before.get(f) != after.get(f))


def _functions(change: CodeChange) -> str:
    """Return `model.py: Model.predict, clean`, the first few."""
    told = []
    for file, functions in sorted(change.functions.items()):
        if functions:
            more = ", ..." if len(functions) > _SHOWN else ""
            told.append(f"{file}: {', '.join(functions[:_SHOWN])}{more}")
    return "; ".join(told)


def _digest(files: Mapping[str, str], salt: str) -> str:
    digest = hashlib.sha256(salt.encode())
    for name, text in sorted(files.items()):
        digest.update(f"{name}\0{len(text)}\0{text}".encode())
    return digest.hexdigest()[:16]


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
