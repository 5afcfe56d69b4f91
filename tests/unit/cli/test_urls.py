"""The URLs that `up` prints speak the protocol that the spec names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kserve_local.api.meta import Object
from kserve_local.cli.progress import urls
from kserve_local.cli.up import first_to_try, sample_request


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


def test_what_to_try_is_a_sample_that_lies_there_or_the_shape_of_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`{}` is refused by every model."""
    monkeypatch.chdir(tmp_path)
    project = tmp_path / "my project"
    (project / "sub" / "samples").mkdir(parents=True)
    isvc: Object = {"metadata": {}, "spec": {"predictor": {"model": {}}}}
    assert sample_request(isvc, project) == """'{"instances": [[...]]}'"""
    for version in ("v2", "grpc-v2"):
        v2 = {"metadata": {}, "spec": {"predictor": {"model": {"protocolVersion": version}}}}
        assert '"inputs"' in sample_request(v2, project)
    (project / "request.json").touch()
    assert sample_request(isvc, project) == "'@my project/request.json'"
    (project / "sub" / "samples" / "one.json").touch()
    isvc["metadata"]["annotations"] = {"kserve-local.dev/manifest": "sub/isvc.yaml"}
    assert sample_request(isvc, project) == "'@my project/sub/samples/one.json'"


def test_a_graph_is_tried_before_its_steps() -> None:
    """The sample beside it is a request for the graph."""
    isvc, graph = {"kind": "InferenceService"}, {"kind": "InferenceGraph"}
    names = {("default", "a"): isvc, ("default", "b"): isvc, ("default", "c"): graph}
    assert first_to_try(names) == ("default", "c")
    assert first_to_try({("default", "b"): isvc, ("default", "a"): isvc}) == ("default", "a")
    assert first_to_try({}) is None
