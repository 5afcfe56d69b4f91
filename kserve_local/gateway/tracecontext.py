"""W3C trace context of a request: read from its `traceparent`, and written for the next hop.

A request that has none begins a trace here, as a mesh's gateway would do; one that has a valid one
goes on in that trace with a parent id of ours. What cannot be read begins anew, and its
`tracestate` is not believed either.

Source: W3C Trace Context, sections 2.2.2, 3.2, 3.3, 3.4.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from random import getrandbits
from typing import NamedTuple

HEADER = b"traceparent"
STATE = b"tracestate"

_FIELD = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_LINE = re.compile(rb"^traceparent:([^\r\n]*)\r\n", re.IGNORECASE | re.MULTILINE)
_SAMPLED = b"01"
# Sampled, and random trace id (level 2); what else a version may mean is not ours to pass on.
_KNOWN_FLAGS = 0x03


class Context(NamedTuple):
    """A valid `traceparent`, in lower case hexadecimal.

    Args:
        trace_id: 32 digits.
        parent: 16 digits: the caller's span.
        flags: 2 digits.
    """

    trace_id: bytes
    parent: bytes
    flags: bytes


def read(values: Sequence[bytes]) -> Context | None:
    """Return the context of a request's `traceparent` headers; None: there is no valid one."""
    match = _FIELD.fullmatch(values[0].strip(b" \t")) if len(values) == 1 else None
    if match is None:
        return None
    version, trace_id, parent, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    if not trace_id.strip(b"0") or not parent.strip(b"0"):
        return None
    return Context(trace_id, parent, b"%02x" % (int(flags, 16) & _KNOWN_FLAGS))


def parted(lines: bytes) -> tuple[Context | None, bytes]:
    """Return the context in header lines, and the lines without it."""
    values = _LINE.findall(lines)
    return (read(values), _LINE.sub(b"", lines)) if values else (None, lines)


def made() -> Context:
    """Return the context of a trace that begins here; nobody's span is its parent yet."""
    return Context(b"%032x" % (getrandbits(128) or 1), new_span(), _SAMPLED)


def new_span() -> bytes:
    """Return a parent id."""
    return b"%016x" % (getrandbits(64) or 1)


def onward(context: Context | None) -> bytes:
    """Return the value for the next hop: the same trace, or a new one, and a new parent id."""
    if context is None:
        return begun()[len(HEADER) + 2 : -2]
    return value(context, new_span())


# Nearly every request needs one, and many at once cost half as much each.
_READY: list[bytes] = []
_AT_ONCE = 128
_DIGITS = 48


def begun() -> bytes:
    """Return the header line of a request with which a trace begins."""
    if not _READY:
        text = os.urandom(_AT_ONCE * _DIGITS // 2).hex().encode()
        _READY.extend(
            b"traceparent: 00-%b-%b-01\r\n" % (text[i : i + 32], text[i + 32 : i + _DIGITS])
            for i in range(0, len(text), _DIGITS)
        )
    return _READY.pop()


def value(context: Context, span: bytes) -> bytes:
    """Return the value for the next hop whose parent is `span`."""
    return b"00-%b-%b-%b" % (context.trace_id, span, context.flags)
