"""The URLs that `up` prints speak the protocol that the spec names."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.cli.progress import urls


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ({}, "/v1/models/m:predict"),
        ({"protocolVersion": "v1"}, "/v1/models/m:predict"),
        ({"protocolVersion": "v2"}, "/v2/models/m/infer"),
        ({"protocolVersion": "grpc-v2"}, "/v2/models/m/infer"),
    ],
)
def test_the_rest_url_is_of_the_protocol(model: dict[str, Any], path: str) -> None:
    isvc = {
        "metadata": {"name": "m", "namespace": "d"},
        "spec": {"predictor": {"model": model}},
        "status": {"url": "http://m.d.example.com"},
    }
    found = urls("http://127.0.0.1:8080", isvc)
    assert found["rest"] == f"http://localhost:8080{path}"
    assert found["host"] == "m.d.example.com"
