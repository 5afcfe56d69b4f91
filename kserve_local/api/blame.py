"""Which field a webhook means. Pure.

KServe's validating webhooks answer with one sentence that rarely names a field. The field to change
is found by trying: it is the one without which the webhook would take the object.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from kserve_local.api.meta import Object, name_of
from kserve_local.errors import Forbidden, Invalid

Path_ = tuple[str | int, ...]
Admit = Callable[[Object], object]
"""Runs the webhooks on an object; raises Forbidden or Invalid as they do."""

_FIELD = re.compile(r"^((?:spec|metadata|status)(?:\.[\w./-]+|\[\d+\])+): ")
_STRUCT = re.compile(r"specified in (Predictor|Transformer|Explainer)Spec")
_GATE = re.compile(r"denied the request: (.*)", re.DOTALL)


def reason(refusal: str) -> str:
    """Return what the webhook itself said, without the API server's wrapping."""
    found = _GATE.search(refusal)
    return found[1] if found else refusal


def named_in(text: str) -> Path_ | None:
    """Return the field that a message starts with, if it does."""
    found = _FIELD.match(text)
    return path_of(found[1]) if found else None


def path_of(field: str) -> Path_:
    """Return the path that a dotted field stands for: `spec.a[0].b`."""
    parts: list[str | int] = []
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", field):
        parts.append(int(index) if index else name)
    return tuple(parts)


def field_of(obj: Object, refusal: str, admit: Admit) -> Path_:
    """Return the field that `obj` was refused for.

    The deepest one without which the object would be taken; failing that, without which something
    else would be wrong. Of several, the one whose name the message has the most words of.

    Args:
        refusal: What `admit` raised for `obj`.
    """
    named = named_in(reason(refusal))
    if named:
        return named
    own_name = name_of(obj)
    wrong = _anonymous(refusal, own_name)
    renamed = {**obj, "metadata": {**obj["metadata"], "name": "a"}}
    # A ConfigMap is only looked at for its name; that is never what is wrong with it.
    if obj["kind"] != "ConfigMap" and _verdict(renamed, "a", admit) != wrong:
        return ("metadata", "name")
    best = (False, 0, 0)
    blamed: Path_ = ()
    waiting: list[Path_] = [
        ("spec",),
        ("data",),
        ("metadata", "annotations"),
        ("metadata", "labels"),
    ]
    while waiting:
        path = waiting.pop(0)
        verdict = _verdict(_without(obj, path), own_name, admit)
        if verdict == wrong:
            continue
        rank = (verdict == "", len(path), _words_in(str(path[-1]), refusal))
        if rank > best:
            best, blamed = rank, path
        waiting.extend((*path, part) for part in _parts(_at(obj, path)))
    struct = _STRUCT.search(refusal)
    if struct and len(blamed) < 2:
        return ("spec", struct[1].lower())
    return blamed or ("spec",)


def _verdict(obj: Object, name: str, admit: Admit) -> str:
    """Return what the webhooks say, empty when they take the object."""
    try:
        admit(obj)
    except (Forbidden, Invalid) as error:
        return _anonymous(str(error), name)
    except (TypeError, AttributeError, ValueError, KeyError):
        return "not an object of this kind any more"
    return ""


def _anonymous(text: str, name: str) -> str:
    return text.replace(f'"{name}"', '"?"')


def _words_in(field: str, text: str) -> int:
    """Return how many words of a field's name the text has: two of `scaleTarget`, ..."""
    words = re.findall(r"[a-z]+|[A-Z][a-z]*", field)
    return sum(word.lower() in text.lower() for word in words)


def _parts(value: Any) -> list[str | int]:
    if isinstance(value, dict):
        return list(value)
    return list(range(len(value))) if isinstance(value, list) else []


def _at(value: Any, path: Path_) -> Any:
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _without(value: Any, path: Path_) -> Any:
    """Return a copy without what is at the path; unchanged if nothing is there."""
    part, rest = path[0], path[1:]
    if isinstance(value, list) and isinstance(part, int):
        if not rest:
            return [item for i, item in enumerate(value) if i != part]
        return [_without(item, rest) if i == part else item for i, item in enumerate(value)]
    if not isinstance(value, dict) or part not in value:
        return value
    if not rest:
        return {k: v for k, v in value.items() if k != part}
    return {k: _without(v, rest) if k == part else v for k, v in value.items()}
