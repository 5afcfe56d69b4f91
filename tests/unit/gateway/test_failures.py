"""A failed request in words: which call, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from kserve_local.gateway import errors, failures


@dataclass
class Head:
    target: bytes
    method: bytes = b"POST"


INFER = Head(b"/inference.GRPCInferenceService/ModelInfer")


@pytest.mark.parametrize(
    ("status", "inner", "counts"),
    [(200, True, False), (404, False, False), (404, True, True), (500, False, True)],
)
def test_a_refusal_is_a_failure_between_components_only(
    status: int, inner: bool, counts: bool
) -> None:
    """What a client asks wrongly is its own affair; one component asking another is not."""
    assert failures.counts(status, inner=inner) is counts


def test_calls_are_named_without_query_and_path_form() -> None:
    head = Head(b"/serving/default/iris/v1/models/iris:predict?x=1")
    assert failures.answered(head, 500) == "POST /v1/models/iris:predict was answered with 500"
    assert failures.answered(head, 500, "boom").endswith(" was answered with 500: boom")
    bare = Head(b"/serving/default/iris", b"GET")
    assert failures.answered(bare, 404) == "GET / was answered with 404"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (b'{"error": "Model with name x does not exist."}', "Model with name x does not exist."),
        (b'{"error": {"message": "too long", "type": "BadRequestError"}}', "too long"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"detail": [{"loc": ["body"], "msg": "no"}]}', '[{"loc": ["body"], "msg": "no"}]'),
        (b'{"other": 1}', '{"other": 1}'),
        (b'{"error": "its end is missing', '{"error": "its end is missing'),
        (b"  words\n of a  server\n", "words of a server"),
        (b"<html><body>502</body></html>", ""),
        (b"\x1f\x8b\x08\x00", ""),
        (b"a\x1b[0mb", "a?[0mb"),
        (b"", ""),
        ("é".encode() * 1024, "é" * 300),
        # Cut in the middle of a sign.
        (b"x" + "é".encode() * 1023 + b"\xc3", "x" + "é" * 299),
    ],
)
def test_a_reason_is_what_the_answer_gives_as_one(said: bytes, found: str) -> None:
    assert failures.reason(said[: failures.HEARD]) == found


@pytest.mark.parametrize(
    ("target", "kind", "said", "why"),
    [
        (b"/v1/models/m:predict", b"application/json", b'{"predictions": []}', ""),
        (b"/v1/models/m:predict", b"application/json", b" [1]", ""),
        (b"/v2/models/m/infer", b"application/json; charset=utf-8", b"", "the answer is no JSON"),
        (
            b"/v2/models/m/versions/1/infer",
            b"application/json",
            b"<p>",
            "the answer is no JSON: <p>",
        ),
        (b"/v1/models/m:explain?x=1", b"text/html", b"{}", "the answer is no JSON: {}"),
        # Bytes, streams and what is no inference are not JSON, and need not be.
        (b"/v2/models/m/infer", b"application/octet-stream", b"\x00", ""),
        (b"/v1/models/m:predict", b"text/event-stream", b"data: x", ""),
        (b"/v1/models/m:predict", b"", b"words", ""),
        (b"/docs", b"text/html", b"<html>", ""),
    ],
)
def test_a_success_that_cannot_be_read_is_none(
    target: bytes, kind: bytes, said: bytes, why: str
) -> None:
    assert failures.unreadable(Head(target), kind, said) == why


@pytest.mark.parametrize(
    ("data", "wanted", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "gRPC", "it speaks HTTP/1.1, not gRPC"),
        (b"HTTP/1.1 400 Bad Request\r\n", "HTTP/1.1", ""),
        (bytes.fromhex("000012040000000000"), "HTTP/1.1", "it speaks gRPC, not HTTP/1.1"),
        (bytes.fromhex("000008070000000000"), "HTTP/1.1", "it speaks gRPC, not HTTP/1.1"),
        (bytes.fromhex("000012040000000000"), "gRPC", ""),
        (b"\x15\x03\x03\x00\x02", "gRPC", "it speaks TLS, not gRPC"),
        (b"hello", "HTTP/1.1", ""),
        (b"", "gRPC", ""),
    ],
)
def test_another_protocol_is_named(data: bytes, wanted: str, why: str) -> None:
    assert failures.spoken(data, wanted=wanted) == why


def test_a_hop_without_an_answer_says_why_in_the_words_of_the_answer() -> None:
    refused = errors.bad_gateway("dial tcp 127.64.0.2:8080: connect: connection refused")
    text = failures.not_answered(Head(b"/v1/models/m:predict"), refused)
    assert text == (
        "POST /v1/models/m:predict: 502, dial tcp 127.64.0.2:8080: connect: connection refused"
    )
    assert failures.not_answered(INFER, errors.Answer(404)) == "ModelInfer: 404"
    gone = errors.failed("ModelLoadFailed: no file", openai=False)
    assert failures.not_answered(INFER, gone) == "ModelInfer: 503, ModelLoadFailed: no file"
    told = failures.not_answered(INFER, errors.timed_out(), "it is asleep")
    assert told == "ModelInfer: 504, activator request timeout (it is asleep)"


def test_an_answer_without_an_end_is_a_failure() -> None:
    head = Head(b"/v1/models/m:predict")
    assert failures.cut_short(head, "EOF") == (
        "POST /v1/models/m:predict: the answer ended too early: EOF"
    )
    assert failures.left(head, 1.26) == (
        "POST /v1/models/m:predict: the caller left after 1.3 s without an answer"
    )
    assert failures.reset(INFER, "CANCEL") == "ModelInfer was reset: CANCEL"


@pytest.mark.parametrize(
    ("trailers", "text"),
    [
        ([(b"grpc-status", b"0")], ""),
        ([], ""),
        (
            [(b"grpc-status", b"5"), (b"grpc-message", b"gone")],
            "ModelInfer ended with NOT_FOUND: gone",
        ),
        ([(b"grpc-status", b"13")], "ModelInfer ended with INTERNAL"),
        (
            [(b"grpc-status", b"13"), (b"grpc-message", b"no%20%C3%A4%0Aat%1B%5B0m%20all")],
            "ModelInfer ended with INTERNAL: no \u00e4 at?[0m all",
        ),
        ([(b"grpc-status", b"99")], "ModelInfer ended with 99"),
    ],
)
def test_a_grpc_call_fails_in_its_trailers(trailers: list[tuple[bytes, bytes]], text: str) -> None:
    assert failures.of_rpc(INFER, trailers, inner=True) == text


@pytest.mark.parametrize(
    ("code", "counts"), [(3, False), (5, False), (1, False), (2, True), (14, True)]
)
def test_a_clients_own_fault_is_no_failure_of_a_call(code: int, counts: bool) -> None:
    trailers = [(b"grpc-status", b"%d" % code)]
    assert bool(failures.of_rpc(INFER, trailers, inner=False)) is counts
    assert failures.of_rpc(INFER, trailers, inner=True)
