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
    bare = Head(b"/serving/default/iris", b"GET")
    assert failures.answered(bare, 404) == "GET / was answered with 404"


def test_a_hop_without_an_answer_says_why_in_the_words_of_the_answer() -> None:
    refused = errors.bad_gateway("dial tcp 127.64.0.2:8080: connect: connection refused")
    text = failures.not_answered(Head(b"/v1/models/m:predict"), refused)
    assert text == (
        "POST /v1/models/m:predict: 502, dial tcp 127.64.0.2:8080: connect: connection refused"
    )
    assert failures.not_answered(INFER, errors.Answer(404)) == "ModelInfer: 404"


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
