"""What is taken out of recorded calls before anybody sees them. Pure.

Headers go by name. Fields go by path: `instances.*.ssn` begins at the top, `*` stands for every
item of a list and every key of an object; a name alone (`password`) is that key anywhere, and that
parameter of a query. What cannot be read for its fields (no JSON, compressed, binary tensors) is
withheld whole as soon as any field is to be redacted: nothing slips through for its form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from kserve_local.interfaces.recorded import REDACTED

WITHHELD = "withheld: requests.redactFields is set, and it is no JSON"
HEADERS = frozenset(
    ("authorization", "cookie", "set-cookie", "x-api-key", "api-key", "proxy-authorization")
)
"""Redacted in any case."""
_DONE = "[DONE]"


class Redaction:
    """What is to be taken out.

    Args:
        headers: Names, beside `HEADERS`.
        fields: Paths.
    """

    def __init__(self, headers: Iterable[str] = (), fields: Iterable[str] = ()) -> None:
        self._headers = HEADERS | {h.lower() for h in headers}
        paths = [tuple(f.removeprefix("$.").split(".")) for f in fields]
        self._names = frozenset(p[0] for p in paths if len(p) == 1 and p[0] != "*")
        self._paths = [p for p in paths if len(p) > 1 or p[0] == "*"]

    def headers(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return headers with the values of those to be redacted replaced."""
        return [(n, REDACTED if n.lower() in self._headers else v) for n, v in pairs]

    def path(self, path: str) -> str:
        """Return a path with values of its query replaced."""
        if not self._names or "?" not in path:
            return path
        names = "|".join(map(re.escape, sorted(self._names)))
        return re.sub(rf"([?&](?:{names})=)[^&]*", rf"\g<1>{REDACTED}", path)

    def body(self, body: bytes, *, readable: bool = True) -> tuple[bytes | None, list[str]]:
        """Return a body without its redacted values, and which fields they were.

        Args:
            readable: What it is said to be can hold JSON only; False: encoded, or with tensors
                behind it.

        Returns:
            None for one that must be withheld.
        """
        if not (self._names or self._paths) or not body.strip():
            return body, []
        if not readable:
            return None, []
        if body.lstrip()[:5] in (b"data:", b"event"):
            return self._events(body)
        found: list[str] = []
        try:
            content = _read(body)
        except ValueError:
            return None, []
        content = self._clean(content, "", self._paths, found)
        return (_written(content) if found else body), found

    def _events(self, body: bytes) -> tuple[bytes | None, list[str]]:
        """Do the same for server-sent events: each line of data for itself."""
        found: list[str] = []
        lines: list[bytes] = []
        for line in body.decode(errors="replace").split("\n"):
            name, colon, text = line.rstrip("\r").partition(":")
            text = text.strip()
            if name != "data" or not colon or text == _DONE:
                # Else only names of events, ids and comments: none of them is a field.
                lines.append(line.encode())
                continue
            try:
                content = _read(text.encode())
            except ValueError:
                return None, []
            lines.append(b"data: " + _written(self._clean(content, "", self._paths, found)))
        return b"\n".join(lines), found

    def _clean(
        self, value: Any, at: str, paths: Sequence[tuple[str, ...]], found: list[str]
    ) -> Any:
        """Return a value without what the paths (from here on) and the names lead to."""
        if isinstance(value, dict):
            pairs = [(str(k), k, v) for k, v in value.items()]
        elif isinstance(value, list):
            pairs = [(str(n), n, v) for n, v in enumerate(value)]
        else:
            return value
        cleaned: dict[Any, Any] = {}
        for name, key, item in pairs:
            where = f"{at}.{name}" if at else name
            onward = [p[1:] for p in paths if p[0] in ("*", name)]
            if () in onward or (isinstance(value, dict) and name in self._names):
                found.append(where)
                cleaned[key] = REDACTED
            else:
                cleaned[key] = self._clean(item, where, onward, found)
        return cleaned if isinstance(value, dict) else list(cleaned.values())


def _read(text: bytes) -> Any:
    """Return the content of JSON as model servers take it (NaN, Infinity).

    Raises:
        ValueError: It is none, nested too deeply, or has a key twice, of which one would be hidden.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _written(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "surrogatepass"
    )
