"""What a debug adapter says, read from the bytes that pass: in pieces, too large, garbled."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kserve_local.supervisor.dap import DapReader


def packed(**message: Any) -> bytes:
    body = json.dumps(message).encode()
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def event(name: str, **body: Any) -> bytes:
    return packed(type="event", event=name, body=body)


def response(command: str, *, success: bool = True) -> bytes:
    return packed(type="response", command=command, success=success)


SESSION = b"".join(
    [
        event("output", output="\r\n\r\nContent-Length: 3\r\n\r\n"),
        response("configurationDone"),
        event("stopped", threadId=1),
        response("next"),
        event("stopped", threadId=1),
        response("continue", success=False),
        event("continued", threadId=1),
        event("terminated"),
    ]
)
SAID = ["attached", "stopped", "running", "stopped", "running", "running"]


@pytest.mark.parametrize("size", [1, 2, 7, 100, 100_000])
def test_pieces_of_any_size_say_the_same(size: int) -> None:
    reader = DapReader()
    pieces = [SESSION[n : n + size] for n in range(0, len(SESSION), size)]
    assert [said for piece in pieces for said in reader.feed(piece)] == SAID


@pytest.mark.parametrize("command", ["continue", "next", "stepIn", "stepOut", "disconnect"])
def test_what_lets_the_program_run_is_known_by_its_answer(command: str) -> None:
    assert list(DapReader().feed(response(command))) == ["running"]


def test_a_huge_message_is_counted_off_and_not_kept() -> None:
    reader = DapReader()
    large = packed(type="response", command="variables", success=True, body="x" * 10_000_000)
    assert list(reader.feed(large[:5_000_000])) == []
    assert len(reader._body) == 0
    assert list(reader.feed(large[5_000_000:] + event("stopped"))) == ["stopped"]


def test_another_protocol_is_let_pass_unread() -> None:
    reader = DapReader()
    for _ in range(100):
        assert list(reader.feed(b"\x16\x03\x01" * 1000)) == []
    assert len(reader._head) < 10_000
    assert list(reader.feed(event("stopped"))) == []
