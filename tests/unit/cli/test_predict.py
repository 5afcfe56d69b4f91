"""How `predict` reads its data and guesses the protocol."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kserve_local.cli import predict_grpc
from kserve_local.cli.predict import detect_protocol, read_data
from kserve_local.errors import TimedOut, UsageError


def test_data_may_be_json_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(b"[1]")
    assert read_data('{"a": 1}') == b'{"a": 1}'
    assert read_data(f"@{tmp_path}/r.json") == b"[1]"


def test_a_file_without_the_at_sign_gets_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("{}")
    with pytest.raises(UsageError) as caught:
        read_data(str(path))
    assert caught.value.hint == f"a file is named with @: @{path}"


@pytest.mark.parametrize("data", ["@/does/not/exist", "{broken"])
def test_unusable_data_is_a_usage_error(data: str) -> None:
    with pytest.raises(UsageError):
        read_data(data)


@pytest.mark.parametrize(
    ("body", "protocol"),
    [
        (b'{"instances": [[1]]}', "v1"),
        (b'{"inputs": [[1]]}', "v1"),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}', "v2"),
        (b"not json", "v1"),
        (b"[]", "v1"),
    ],
)
def test_the_protocol_is_read_off_the_body(body: bytes, protocol: str) -> None:
    assert detect_protocol(body) == protocol


class RpcFailure:
    """What grpcio raises."""

    def __init__(self, code: str, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> Any:
        return SimpleNamespace(name=self._code)

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()


@pytest.mark.parametrize("details", ["Deadline Exceeded", "Stream removed (Deadline Exceeded)"])
def test_our_own_deadline_is_told_as_such(details: str) -> None:
    """The words are grpcio's and differ between versions."""
    with pytest.raises(TimedOut, match="no answer within 2 s"):
        predict_grpc._failed(RpcFailure("DEADLINE_EXCEEDED", details), "http://localhost", 2.0)
    told = predict_grpc._failed(
        RpcFailure("DEADLINE_EXCEEDED", "too slow"), "http://localhost", 2.0
    )
    assert told == (504, {}, b"DEADLINE_EXCEEDED: too slow")
