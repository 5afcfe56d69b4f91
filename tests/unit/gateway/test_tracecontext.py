"""W3C trace context: what counts as one, and what goes on."""

from __future__ import annotations

import pytest

from kserve_local.gateway import tracecontext
from kserve_local.gateway.head import RequestHead, parse_request
from kserve_local.gateway.tracecontext import Context

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (GIVEN, "01"),
        (f"00-{TRACE}-{SPAN}-00", "00"),
        (f"  {GIVEN}\t", "01"),
        # Random trace id (level 2); what else version 00 does not know is cleared.
        (f"00-{TRACE}-{SPAN}-03", "03"),
        (f"00-{TRACE}-{SPAN}-ff", "03"),
        # A later version may say more.
        (f"cc-{TRACE}-{SPAN}-01", "01"),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", "01"),
    ],
)
def test_what_is_valid_is_read(value: str, flags: str) -> None:
    found = tracecontext.read([value.encode()])
    assert found == Context(TRACE.encode(), SPAN.encode(), flags.encode())


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        f"{GIVEN}-more",
        f"{GIVEN}x",
        f"ff-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01.",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0x",
    ],
)
def test_what_is_not_valid_is_none(value: str) -> None:
    assert tracecontext.read([value.encode()]) is None


def test_two_values_are_none() -> None:
    assert tracecontext.read([GIVEN.encode(), GIVEN.encode()]) is None
    assert tracecontext.read([]) is None


def test_the_next_hop_has_the_same_trace_and_a_parent_of_ours() -> None:
    context = tracecontext.read([f"cc-{TRACE}-{SPAN}-00-more".encode()])
    one, two = (tracecontext.onward(context).decode() for _ in range(2))
    assert one[:36] == two[:36] == f"00-{TRACE}-"
    assert one.endswith("-00")
    assert len({SPAN, one[36:52], two[36:52]}) == 3


def test_without_one_a_trace_begins() -> None:
    one, two = (tracecontext.read([tracecontext.onward(None)]) for _ in range(2))
    assert one is not None
    assert two is not None
    assert one.trace_id != two.trace_id
    assert one.flags == b"01"
    assert tracecontext.read([tracecontext.value(one, b"ab" * 8)]) == one._replace(parent=b"ab" * 8)


def test_a_context_is_parted_from_other_ids() -> None:
    ids = f"X-Request-Id: traceparent: 7\r\nTraceParent: {GIVEN}\r\n".encode()
    found, rest = tracecontext.parted(ids)
    assert found == Context(TRACE.encode(), SPAN.encode(), b"01")
    assert rest == b"X-Request-Id: traceparent: 7\r\n"
    assert tracecontext.parted(rest) == (None, rest)
    # Neither of two, and none of them goes on.
    assert tracecontext.parted(f"traceparent: {GIVEN}\r\n".encode() * 2) == (None, b"")


def head(*lines: str) -> RequestHead:
    text = "".join(f"{line}\r\n" for line in ("Host: a", *lines))
    return parse_request(f"POST /v1/models/m:predict HTTP/1.1\r\n{text}\r\n".encode())


def test_a_head_passes_its_context_on_only_through_us() -> None:
    found = head(f"TraceParent: {GIVEN}", "tracestate: a=1", "Tracestate: b=2", "X-A: 1")
    assert found.context is not None
    assert found.context.trace_id == TRACE.encode()
    assert b"traceparent" not in found.lines.lower()
    assert found.lines.lower().count(b"tracestate") == 2
    # Such a head never comes again, so it is not worth keeping.
    assert found.has_id


@pytest.mark.parametrize("lines", [("traceparent: nonsense",), (f"traceparent: {GIVEN}",) * 2, ()])
def test_a_state_without_a_context_is_not_believed(lines: tuple[str, ...]) -> None:
    found = head("tracestate: a=1", *lines)
    assert found.context is None
    assert b"trace" not in found.lines.lower()


@pytest.mark.parametrize(
    ("line", "asks"),
    [
        ("x-kserve-local-trace: 1", True),
        ("X-Kserve-Local-Trace: true", True),
        ("x-kserve-local-trace: 0", False),
        ("x-kserve-local-trace: False", False),
        ("x-kserve-local-trace:", False),
        ("x-other: 1", False),
    ],
)
def test_who_asks_for_a_trace(line: str, asks: bool) -> None:
    """The model does not see that somebody asks."""
    found = head(line)
    assert found.asks is asks
    assert b"kserve-local" not in found.lines
