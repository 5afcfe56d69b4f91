"""Which answer an error becomes."""

from __future__ import annotations

from modelserver.errors import ModelNotFound, answer_of


def test_an_unknown_model_is_kserves_answer_and_a_header_with_the_models_there_are() -> None:
    """The body is KServe's to the byte; what it lacks is told beside it."""
    status, body, headers = answer_of(ModelNotFound("irsi", ["iris", "wine"]))
    assert (status, body) == (404, {"error": "Model with name irsi does not exist."})
    assert headers == {"x-kserve-local-models": "iris, wine"}


def test_the_header_names_at_most_twenty_models_in_printable_ascii() -> None:
    """Whatever models are called, the answer's head stays one that clients can read."""
    _, _, headers = answer_of(ModelNotFound("x", [f"m{n}\r\nSet-Cookie: é" for n in range(30)]))
    value = headers["x-kserve-local-models"]
    assert value.isascii()
    assert value.isprintable()
    assert value.count(", ") == 19


def test_a_server_without_models_has_no_header() -> None:
    assert answer_of(ModelNotFound("x"))[2] == {}
