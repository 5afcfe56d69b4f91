"""What differs between two answers of a model: field by field, numbers within a tolerance. Pure.

JSON is compared as JSON, the events of a stream by what they add up to, V2's binary tensors by
their values, all else by bytes. What is new in every answer (ids, times) is no difference; neither
is what was redacted in the recorded one.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kserve_local.client import oip_grpc
from kserve_local.interfaces.recorded import REDACTED

TOLERANCE = 1e-6
_NEW_EACH_TIME = frozenset(("id", "created", "created_at", "system_fingerprint"))
_SHOWN_BYTES = 80


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that is not as it was.

    Args:
        path: `predictions.0.1`; empty: the answer as a whole.
        what: `added` and `removed` have no `before`, no `after`.
        delta: For numbers: by how much.
    """

    path: str
    before: Any
    after: Any
    what: Literal["changed", "added", "removed"] = "changed"
    delta: float | None = None


def compare(
    before: bytes,
    after: bytes,
    *,
    tolerance: float = TOLERANCE,
    before_head: int | None = None,
    after_head: int | None = None,
) -> list[Difference]:
    """Return what differs, in the order of the answers; empty: they say the same.

    Args:
        tolerance: Of numbers, both relative and absolute.
        before_head, after_head: `Inference-Header-Content-Length` of an answer with binary tensors.
    """
    if before == after:
        return []
    try:
        old, new = _content(before, before_head), _content(after, after_head)
    except (ValueError, TypeError, KeyError, AttributeError, struct.error, RecursionError):
        return [Difference("", _shown(before), _shown(after))]
    return list(_differences(old, new, "", tolerance))


def _content(body: bytes, head: int | None) -> Any:
    """Return what a body says.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, struct.error, RecursionError: It is not of
            the kinds that are read.
    """
    if head is not None:
        return _without_news(_with_tensors(body, head))
    if body.lstrip()[:5] in (b"data:", b"event"):
        return _stream(body)
    return _without_news(json.loads(body))


def _with_tensors(body: bytes, head: int) -> Any:
    """Return a V2 answer with its binary tensors as `data`."""
    answer = json.loads(body[:head])
    at = head
    for tensor in answer.get("outputs") or ():
        parameters = tensor.get("parameters") or {}
        size = parameters.pop("binary_data_size", None)
        if size is None:
            continue
        raw = body[at : at + size]
        at += size
        tensor["data"] = oip_grpc.read_raw(tensor["datatype"], raw) or raw.hex()
        if not parameters:
            tensor.pop("parameters", None)
    return answer


def _without_news(answer: Any) -> Any:
    """Return an answer without what is another in each, if it is of a protocol that has such."""
    if not isinstance(answer, Mapping) or not {"model_name", "outputs", "object"} & set(answer):
        return answer
    return {k: v for k, v in answer.items() if k not in _NEW_EACH_TIME}


def _stream(body: bytes) -> Any:
    """Return what the events of a stream add up to: of OpenAI's the text of each choice."""
    events: list[Any] = []
    texts: dict[str, dict[str, Any]] = {}
    for line in body.decode().splitlines():
        name, _, data = line.partition(":")
        if name != "data" or data.strip() in ("", "[DONE]"):
            continue
        event = json.loads(data)
        choices = event.get("choices") if isinstance(event, Mapping) else None
        if choices is None:
            events.append(_without_news(event))
            continue
        for choice in choices:
            at = texts.setdefault(str(choice.get("index", 0)), {"text": "", "finish_reason": None})
            delta = choice.get("delta") or {}
            at["text"] += delta.get("content") or choice.get("text") or ""
            at["finish_reason"] = choice.get("finish_reason") or at["finish_reason"]
            if delta.get("tool_calls"):
                at.setdefault("tool_calls", []).extend(
                    {k: v for k, v in call.items() if k != "id"} for call in delta["tool_calls"]
                )
    found: dict[str, Any] = {"choices": texts} if texts else {}
    return {**found, "events": events} if events else found


def _differences(before: Any, after: Any, path: str, tolerance: float) -> Iterator[Difference]:
    if before == REDACTED:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(k for k in after if k not in before)]:
            yield from _item(before, after, key, f"{path}.{key}" if path else str(key), tolerance)
    elif isinstance(before, list) and isinstance(after, list):
        old, new = dict(enumerate(before)), dict(enumerate(after))
        for n in range(max(len(before), len(after))):
            yield from _item(old, new, n, f"{path}.{n}" if path else str(n), tolerance)
    elif _is_number(before) and _is_number(after):
        if not _is_close(before, after, tolerance):
            yield Difference(path, before, after, delta=_delta(before, after))
    elif before != after or isinstance(before, bool) is not isinstance(after, bool):
        yield Difference(path, before, after)


def _item(
    before: dict[Any, Any], after: dict[Any, Any], key: Any, path: str, tolerance: float
) -> Iterator[Difference]:
    if key not in after:
        yield Difference(path, before[key], None, "removed")
    elif key not in before:
        yield Difference(path, None, after[key], "added")
    else:
        yield from _differences(before[key], after[key], path, tolerance)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_close(before: float, after: float, tolerance: float) -> bool:
    if math.isnan(before) or math.isnan(after):
        return math.isnan(before) and math.isnan(after)
    return before == after or math.isclose(before, after, rel_tol=tolerance, abs_tol=tolerance)


def _delta(before: float, after: float) -> float | None:
    delta = after - before
    return delta if math.isfinite(delta) else None


def _shown(body: bytes) -> str:
    """Return the beginning of a body for a person."""
    text = body[:_SHOWN_BYTES].decode(errors="replace")
    return f"{text}... ({len(body)} bytes)" if len(body) > _SHOWN_BYTES else text
