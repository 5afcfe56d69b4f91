"""Decides what a save of Python code needs: nothing, new functions in place, or new replicas. Pure.

Functions are replaced in place only if nothing but their bodies differs (or some are new), and if
none of them runs before the first request: what `load()` computed with old code is what the new
code would work with. When unsure, new replicas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kserve_local.devloop.body_diff import Differs
from kserve_local.devloop.call_graph import CallGraph, runs_at_start, stem_of
from kserve_local.devloop.facts import facts_of
from kserve_local.devloop.file_diff import FileDiff, diff_of
from kserve_local.devloop.source import Function, Unreadable, compiled
from kserve_local.interfaces.code import CodeChange


@dataclass(frozen=True, slots=True)
class Nothing:
    """The same code, in the same places."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A file that is no Python.

    Args:
        error: For people, e.g. `SyntaxError: invalid syntax`.
    """

    file: str
    line: int
    error: str


@dataclass(frozen=True, slots=True)
class Restart:
    """Only a new process runs this.

    Args:
        reason: For people.
        line: Of the new text; of the old one for what was removed.
    """

    reason: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Swap:
    """Functions differ, or only where they stand; a running process can take them over."""

    change: CodeChange


Verdict = Nothing | Broken | Restart | Swap


def decide(before: Mapping[str, str], after: Mapping[str, str], *, id: str) -> Verdict:
    """Return what it takes to run `after` where `before` runs.

    Args:
        before, after: Text of all Python files of the code by path; those that did not change are
            read for who calls whom.
        id: For the change, if it is a swap.
    """
    changed = sorted(f for f in after if f in before and before[f] != after[f])
    added = sorted(f for f in after if f not in before)
    removed = sorted(f for f in before if f not in after)
    if not changed and not added and not removed:
        return Nothing()
    try:
        return (
            _broken(changed, added, before, after)
            or _changed_files(added, removed, before, after)
            or _changed_code(changed, before, after, id)
        )
    except RecursionError:
        return Restart("its code is nested too deeply to be compared", (changed or added)[0], 1)


def learn(files: Mapping[str, str]) -> None:
    """Read files ahead of the first save, so that it need not wait for that."""
    for text in files.values():
        facts_of(text)


def _broken(
    changed: Iterable[str],
    added: Iterable[str],
    before: Mapping[str, str],
    after: Mapping[str, str],
) -> Broken | None:
    """Return the first file that is no Python, but not a new one that nobody imports."""
    for file in (*changed, *(f for f in added if _importer(f, after))):
        text = after[file]
        if not text.strip() and before.get(file, "").strip():
            return Broken(file, 1, "the file is empty: half saved?")
        try:
            compiled(text)
        except Unreadable as error:
            return Broken(file, error.line, error.error)
    return None


def _importer(file: str, files: Mapping[str, str]) -> str:
    """Return a file that names another one's module, empty if none does."""
    stem = stem_of(file)
    return next((f for f, text in files.items() if f != file and stem in facts_of(text).names), "")


def _changed_files(
    added: Iterable[str],
    removed: Iterable[str],
    before: Mapping[str, str],
    after: Mapping[str, str],
) -> Restart | None:
    for file in removed:
        return Restart(f'"{file}" was removed', file, 1)
    for file in added:
        importer = _importer(file, after)
        if importer:
            return Restart(f'"{file}" is new, and {importer} imports it', file, 1)
    for file, text in after.items():
        facts = facts_of(text)
        if facts.error and before.get(file) == text and _importer(file, after):
            return Restart(f"who calls whom is not known: {facts.error}", file, facts.line)
    return None


def _changed_code(
    changed: Iterable[str], before: Mapping[str, str], after: Mapping[str, str], id: str
) -> Verdict:
    diffs: dict[str, FileDiff] = {}
    for file in changed:
        try:
            diffs[file] = diff_of(before[file], after[file])
        except Differs as differs:
            return Restart(differs.reason, file, differs.line)
        except Unreadable as error:
            return Restart(f"it could not be read before ({error.error})", file, 1)
    if any(diff.changed or diff.added or diff.has_other_doc for diff in diffs.values()):
        # The old texts need no walk: on every way to a changed function, the first changed one is
        # reached by code that is in both.
        why = _why_not(diffs, CallGraph(after))
        if why:
            return why
    swapped = [f for f, d in diffs.items() if d.changed or d.added or d.has_moved]
    if not swapped:
        return Nothing()
    return Swap(
        CodeChange(
            id=id,
            before={file: before[file] for file in swapped},
            after={file: after[file] for file in swapped},
            functions={file: diffs[file].names for file in swapped if diffs[file].names},
        )
    )


def _why_not(diffs: Mapping[str, FileDiff], graph: CallGraph) -> Restart | None:
    """Return why functions cannot be replaced, by who calls whom."""
    for file, diff in diffs.items():
        for function in diff.changed:
            id = (file, function.qualname, function.index)
            why = graph.why_reached(*id) if runs_at_start(function.node.name) else ""
            why = why or graph.why_decorated(*id) or graph.why_reached(*id)
            why = why or graph.why_odd(file, ".".join(function.owners))
            if why:
                return Restart(why, file, function.node.lineno)
        for function in diff.added:
            why = _why_not_added(file, function, graph)
            if why:
                return Restart(why, file, function.node.lineno)
        if diff.has_other_doc and graph.mentions("__doc__"):
            return Restart("module level changed: its docstring is read", file, 1)
        if graph.computed is not None and (diff.changed or diff.added):
            where, how, line = graph.computed
            why = f"{how} in {where}, line {line}, which runs at the start, may reach any function"
            return Restart(why, file, (*diff.changed, *diff.added)[0].node.lineno)
    return None


def _why_not_added(file: str, function: Function, graph: CallGraph) -> str:
    name, owner = function.qualname, ".".join(function.owners)
    why = graph.why_reached(file, name, function.index)
    if why:
        return why
    if owner:
        if graph.is_open(file, owner):
            return f'"{name}" is new, and a base of "{owner}" may look for methods'
        if graph.is_abstract(function.node.name):
            return f'"{name}" is new, and abstract in a base'
        return graph.why_odd(file, owner)
    for other, text in graph.files.items():
        stars = facts_of(text).stars
        if stem_of(file) in stars or ("" in stars and file.endswith("__init__.py")):
            return f'"{name}" is new, and {other} imports all of its file by *'
    return ""
