"""How `events --payloads` shows what was logged."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.cli.events import _payload_line

EVENT = {
    "id": "i-1", "type": "org.kubeflow.serving.inference.request", "component": "predictor",
    "time": "2026-01-02T03:04:05.6Z", "inferenceservicename": "iris", "target": "http://sink.default",
}  # fmt: skip


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ({"instances": ["ä"]}, '{"instances": ["ä"]}'),
        ("a\n  b", "a b"),
        ("evil\x1b]0;title\x07", "evil?]0;title?"),
        ({"x": "\x9b31m"}, '{"x": "?31m"}'),
    ],
)
def test_a_payload_is_one_line_without_control_characters(data: Any, shown: str) -> None:
    line = _payload_line({**EVENT, "data": data})
    assert line == f"03:04:05  request   iris/predictor  i-1  http://sink.default  {shown}"
