"""One parser for every resource path."""

from __future__ import annotations

import pytest

from kserve_local.api import scheme
from kserve_local.apiserver.paths import parse
from kserve_local.errors import NotFound

ISVC = "/apis/serving.kserve.io/v1beta1"


@pytest.mark.parametrize(
    ("path", "kind", "namespace", "name", "subresource"),
    [
        ("/api/v1/pods", scheme.POD, None, "", ""),
        ("/api/v1/namespaces/n/pods", scheme.POD, "n", "", ""),
        ("/api/v1/namespaces/n/pods/p", scheme.POD, "n", "p", ""),
        ("/api/v1/namespaces/n/pods/p/log", scheme.POD, "n", "p", "log"),
        ("/api/v1/namespaces", scheme.NAMESPACE, None, "", ""),
        ("/api/v1/namespaces/n", scheme.NAMESPACE, None, "n", ""),
        ("/api/v1/namespaces/n/status", scheme.NAMESPACE, None, "n", "status"),
        ("/api/v1/namespaces/pods/pods", scheme.POD, "pods", "", ""),
        (f"{ISVC}/inferenceservices", scheme.INFERENCE_SERVICE, None, "", ""),
        (f"{ISVC}/namespaces/n/inferenceservices/x", scheme.INFERENCE_SERVICE, "n", "x", ""),
        (
            "/apis/serving.knative.dev/v1/namespaces/n/services/x",
            scheme.KNATIVE_SERVICE,
            "n",
            "x",
            "",
        ),
        ("/api/v1/namespaces/n/services/x", scheme.SERVICE, "n", "x", ""),
    ],
)
def test_paths_name_what_they_should(
    path: str,
    kind: scheme.ResourceType,
    namespace: str | None,
    name: str,
    subresource: str,
) -> None:
    target = parse(path)
    assert (target.kind, target.namespace, target.name, target.subresource) == (
        kind,
        namespace,
        name,
        subresource,
    )


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api",
        "/api/v1",
        "/api/v2/pods",
        "/api/v1/nothings",
        "/api/v1/pods/p",  # a namespaced object has no path without its namespace
        "/api/v1/namespaces/n/nodes/x",  # and a cluster-scoped one none with
        f"{ISVC}/namespaces/n/pods",
        "/apis/serving.kserve.io/v1/inferenceservices",
        "/api/v1/namespaces/n/pods/p/log/more",
    ],
)
def test_other_paths_are_not_found(path: str) -> None:
    with pytest.raises(NotFound, match="the server could not find the requested resource"):
        parse(path)
