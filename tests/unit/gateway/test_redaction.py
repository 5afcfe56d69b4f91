"""What is taken out of recorded calls, and what is withheld because nobody can tell."""

from __future__ import annotations

import json

import pytest

from kserve_local.gateway.redaction import Redaction
from kserve_local.interfaces.recorded import REDACTED


def cleaned(content: object, *fields: str) -> tuple[object, list[str]]:
    body, found = Redaction(fields=fields).body(json.dumps(content).encode())
    assert body is not None
    return json.loads(body), found


def test_a_path_begins_at_the_top_and_a_star_is_every_item_and_key() -> None:
    content = {"instances": [{"ssn": 1, "n": 2}, {"ssn": [3]}], "ssn": 4, "by": {"a": {"k": 5}}}
    found, paths = cleaned(content, "instances.*.ssn", "by.*.k")
    assert found == {
        "instances": [{"ssn": REDACTED, "n": 2}, {"ssn": REDACTED}],
        "ssn": 4,
        "by": {"a": {"k": REDACTED}},
    }
    assert paths == ["instances.0.ssn", "instances.1.ssn", "by.a.k"]


def test_a_name_alone_is_that_key_anywhere() -> None:
    found, paths = cleaned({"a": [{"password": {"x": 1}}], "password": "p"}, "password")
    assert found == {"a": [{"password": REDACTED}], "password": REDACTED}
    assert paths == ["a.0.password", "password"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (("instances.0",), {"instances": [REDACTED, [2, 3]]}),
        (("instances.*.1",), {"instances": [[0, REDACTED], [2, REDACTED]]}),
        (("$.instances",), {"instances": REDACTED}),
        (("*",), {"instances": REDACTED}),
        (("instance",), {"instances": [[0, 1], [2, 3]]}),
    ],
)
def test_paths_may_name_items_and_whole_values(fields: tuple[str, ...], expected: object) -> None:
    assert cleaned({"instances": [[0, 1], [2, 3]]}, *fields)[0] == expected


def test_a_body_without_such_fields_stays_as_it_is_to_the_byte() -> None:
    body = b'{ "instances": [1.0, NaN] }'
    assert Redaction(fields=("password",)).body(body) == (body, [])
    assert Redaction().body(b"\x00\xff") == (b"\x00\xff", [])
    assert Redaction(fields=("password",)).body(b"") == (b"", [])


@pytest.mark.parametrize(
    "body",
    [
        b"password=1",
        b'{"password": 1',
        b"\x1f\x8b\x08",
        # A reader of the first, or of the last, of two equal keys would see the other.
        b'{"a": {"password": 1}, "a": 2}',
        b"[" * 100_000,
        b"data: {",
    ],
)
def test_what_cannot_be_read_for_its_fields_is_withheld(body: bytes) -> None:
    assert Redaction(fields=("password",)).body(body) == (None, [])


def test_encoded_bodies_are_withheld_although_they_look_like_json() -> None:
    assert Redaction(fields=("password",)).body(b"{}", readable=False) == (None, [])


def test_each_event_of_a_stream_is_redacted() -> None:
    body = b'event: x\ndata: {"a": {"password": 1}}\r\n\ndata:{"n": 2}\n\ndata: [DONE]\n\n'
    found, paths = Redaction(fields=("password",)).body(body)
    assert paths == ["a.password"]
    assert found == (
        b'event: x\ndata: {"a":{"password":"[redacted]"}}\n\ndata: {"n":2}\n\ndata: [DONE]\n\n'
    )


def test_headers_go_by_name_and_some_always_do() -> None:
    pairs = [("Authorization", "a"), ("X-API-Key", "b"), ("X-Tenant", "c"), ("Accept", "d")]
    assert Redaction(("x-tenant",)).headers(pairs) == [
        ("Authorization", REDACTED), ("X-API-Key", REDACTED), ("X-Tenant", REDACTED),
        ("Accept", "d"),
    ]  # fmt: skip


def test_parameters_of_a_query_go_by_name() -> None:
    redaction = Redaction(fields=("token", "a.b"))
    assert redaction.path("/p?x=1&token=S&y=2") == "/p?x=1&token=[redacted]&y=2"
    assert redaction.path("/p?atoken=1") == "/p?atoken=1"
    assert redaction.path("/token") == "/token"
