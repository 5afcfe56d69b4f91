"""Server-side apply: what a field manager sends replaces what it applied before. Pure.

Each manager's fields are remembered in `metadata.managedFields` (FieldsV1); lists with keys belong
to managers element by element (`keyed`), other lists are one field. A field that another manager
applied with another value is a conflict unless forced; a field that this manager applied before
and leaves out now is removed, if nobody else applied it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kserve_local.api.meta import Object
from kserve_local.apiserver.keyed import is_element, keyed, keys_of, listed, shown
from kserve_local.errors import Cause, Conflict

Path = tuple[str, ...]
_NOT_OWNED = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}


def apply(
    current: Object | None,
    applied: Object,
    *,
    manager: str,
    force: bool,
    now: str,
    title: str,
) -> Object:
    """Return the object that results.

    Args:
        current: As stored; None: it is created.
        applied: What the manager sent.
        title: How a conflict names the object.

    Raises:
        Conflict: Other managers applied some of these fields differently; one
            `FieldManagerConflict` cause each.
    """
    applied = keyed(_without(applied, ("metadata", "managedFields")))
    current = None if current is None else keyed(current)
    mine = frozenset(p for p in _leaves(applied) if p not in _NOT_OWNED)
    entries = list((current or {}).get("metadata", {}).get("managedFields") or ())
    own = next((e for e in entries if _is(e, manager)), None)
    fields = _fields(mine)
    if own is None or own.get("fieldsV1") != fields:  # the same wish again writes nothing
        replaced = {
            "manager": manager,
            "operation": "Apply",
            "apiVersion": applied.get("apiVersion"),
            "time": now,
            "fieldsType": "FieldsV1",
            "fieldsV1": fields,
        }
    else:
        replaced = own
    owned_elsewhere: set[Path] = set()
    conflicts: list[Cause] = []
    managed: list[dict[str, Any]] = []
    for entry in entries:
        if entry is own:
            managed.append(replaced)
            continue
        if entry.get("operation") != "Apply":
            managed.append(entry)
            continue
        theirs = _paths(entry)
        clash = {p for p in mine & theirs if _differ(_at(current, p), _at(applied, p))}
        if clash and not force:
            conflicts += [
                Cause("FieldManagerConflict", f'conflict with "{entry["manager"]}"', _text(p))
                for p in sorted(clash)
            ]
        owned_elsewhere |= theirs - clash
        if not clash:
            managed.append(entry)
        elif theirs - clash:
            managed.append({**entry, "fieldsV1": _fields(theirs - clash)})
    if own is None:
        managed.append(replaced)
    if conflicts:
        fields_ = ", ".join(cause.field for cause in conflicts)
        many = "s" if len(conflicts) > 1 else ""
        raise Conflict(
            f"Apply failed with {len(conflicts)} conflict{many}: {title}: "
            f"{conflicts[0].message}: {fields_}",
            causes=conflicts,
        )
    result: Object = current or {}
    before = _paths(own) if own is not None else frozenset()
    for path in before - mine - owned_elsewhere:
        if len(path) > 1 and path[-1] in keys_of(path[-2]):
            path = path[:-1]  # nobody wants the element any more: all of it goes
        value = _at(result, path)
        # Once applied as {} and filled by others since: stays. An element goes as a whole.
        if is_element(path[-1]) or not (isinstance(value, dict) and value):
            result = _without(result, path)
    result = listed(_merged(result, applied))
    return {**result, "metadata": {**result.get("metadata", {}), "managedFields": managed}}


def _is(entry: dict[str, Any], manager: str) -> bool:
    return entry.get("manager") == manager and entry.get("operation") == "Apply"


def _leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif path:
        yield path


def _fields(paths: frozenset[Path] | set[Path]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path in sorted(paths):
        node = tree
        for step in path:
            node = node.setdefault(step if is_element(step) else f"f:{step}", {})
    return tree


def _paths(entry: dict[str, Any]) -> frozenset[Path]:
    return frozenset(
        tuple(step.removeprefix("f:") for step in path) for path in _leaves(entry.get("fieldsV1"))
    )


def _at(obj: Any, path: Path) -> Any:
    for step in path:
        obj = obj.get(step) if isinstance(obj, dict) else None
    return obj


def _differ(current: Any, applied: Any) -> bool:
    # Maps merge: an empty one contradicts nothing.
    return current != applied and not (isinstance(current, dict) and isinstance(applied, dict))


def _text(path: Path) -> str:
    return "".join(map(shown, path))


def _without(obj: Object, path: Path) -> Object:
    head, *rest = path
    if not isinstance(obj, dict) or head not in obj:
        return obj
    if rest:
        inner = _without(obj[head], tuple(rest))
        if inner is obj[head]:
            return obj
        if inner:
            return type(obj)({**obj, head: inner})
    return type(obj)({k: v for k, v in obj.items() if k != head})


def _merged(original: Any, applied: Any) -> Any:
    if not isinstance(original, dict) or type(original) is not type(applied):
        return applied
    result = type(original)(original)
    for key, value in applied.items():
        result[key] = _merged(original.get(key), value)
    return result
