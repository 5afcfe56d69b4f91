"""How `predict` reads its data and guesses the protocol."""

from __future__ import annotations

from pathlib import Path

import pytest

from kserve_local.cli.predict import detect_protocol, read_data
from kserve_local.errors import UsageError


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


@pytest.mark.parametrize("data", [None, "@/does/not/exist", "{broken"])
def test_unusable_data_is_a_usage_error(data: str | None) -> None:
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
