"""What the API machinery does to objects on their way into the store."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from kserve_local.api import scheme
from kserve_local.errors import Conflict, Invalid
from kserve_local.store import strategy


def create(obj: dict[str, Any], name: str = "x") -> dict[str, Any]:
    return strategy.prepare_create(scheme.of(obj), obj, name, sequence=7)


def isvc(**more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "x", "namespace": "default"},
        "spec": {"predictor": {"minReplicas": 1}},
        **more,
    }


def test_create_fills_what_the_server_owns_and_nothing_else() -> None:
    new = create(isvc(metadata={"name": "x", "labels": {"a": "b"}, "uid": "mine", "odd": 1}))
    metadata = new["metadata"]
    assert metadata["resourceVersion"] == "7"
    assert metadata["generation"] == 1
    assert metadata["namespace"] == "default"
    assert metadata["labels"] == {"a": "b"}
    assert re.fullmatch(r"[0-9a-f-]{36}", metadata["uid"])
    assert "odd" not in metadata


def test_status_of_a_new_object_is_dropped() -> None:
    """A manifest written by `kubectl get -o yaml` must not bring a status along."""
    assert "status" not in create(isvc(status={"url": "http://x"}))


def test_string_data_is_folded_into_data() -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "x"},
        "data": {"a": "QQ=="},
        "stringData": {"b": "B", "a": "new"},
    }
    new = create(secret)
    assert new["data"] == {
        "a": base64.b64encode(b"new").decode(),
        "b": base64.b64encode(b"B").decode(),
    }
    assert "stringData" not in new
    assert new["type"] == "Opaque"


def test_namespaces_are_active_and_labelled() -> None:
    new = create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}, "n")
    assert new["status"] == {"phase": "Active"}
    assert new["metadata"]["labels"] == {"kubernetes.io/metadata.name": "n"}
    assert new["spec"]["finalizers"] == ["kubernetes"]


def test_a_change_of_the_wish_raises_the_generation() -> None:
    old = create(isvc())
    new = strategy.prepare_update(
        scheme.INFERENCE_SERVICE, isvc(spec={"predictor": {}}), old, sequence=8
    )
    assert new["metadata"]["generation"] == 2
    assert new["metadata"]["resourceVersion"] == "8"
    assert new["metadata"]["uid"] == old["metadata"]["uid"]


def test_a_change_of_metadata_does_not() -> None:
    old = create(isvc())
    labelled = isvc(metadata={"name": "x", "namespace": "default", "labels": {"a": "b"}})
    new = strategy.prepare_update(scheme.INFERENCE_SERVICE, labelled, old, sequence=8)
    assert new["metadata"]["generation"] == 1
    assert new["metadata"]["resourceVersion"] == "8"


def test_an_update_that_changes_nothing_is_the_old_object() -> None:
    old = {**create(isvc()), "status": {"url": "http://x"}}
    again = isvc(status={"url": "http://other"})
    assert strategy.prepare_update(scheme.INFERENCE_SERVICE, again, old, sequence=8) is old


def test_another_uid_is_a_conflict() -> None:
    old = create(isvc())
    other = isvc(metadata={"name": "x", "namespace": "default", "uid": "other"})
    with pytest.raises(Conflict, match="Precondition failed: UID in precondition: other"):
        strategy.prepare_update(scheme.INFERENCE_SERVICE, other, old, sequence=8)


def test_names_are_checked_in_the_api_servers_words() -> None:
    with pytest.raises(Invalid) as caught:
        create(isvc(metadata={"name": "Iris"}), "Iris")
    assert caught.value.message.startswith(
        'InferenceService.serving.kserve.io "Iris" is invalid: metadata.name: Invalid value: '
        '"Iris": a lowercase RFC 1123 subdomain must consist of'
    )
    assert [c.field for c in caught.value.causes] == ["metadata.name"]


def test_the_selector_of_a_deployment_is_immutable() -> None:
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "x"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}},
    }
    old = create(deployment)
    other = {**deployment, "spec": {"selector": {"matchLabels": {"a": "c"}}}}
    with pytest.raises(Invalid, match=r"spec\.selector: Invalid value: .*field is immutable"):
        strategy.prepare_update(scheme.DEPLOYMENT, other, old, sequence=8)


def test_no_finalizer_is_added_to_an_object_being_deleted() -> None:
    old = strategy.mark_deleted(
        create(isvc()), sequence=8, at="2026-01-01T00:00:00Z", grace=0, finalizers=["a/b"]
    )
    more = isvc(metadata={**old["metadata"], "finalizers": ["a/b", "c/d"]})
    with pytest.raises(Invalid, match="no new finalizers can be added"):
        strategy.prepare_update(scheme.INFERENCE_SERVICE, more, old, sequence=9)


def test_generated_names_keep_the_prefix_and_fit_a_label() -> None:
    assert re.fullmatch(r"iris-[a-z0-9]{5}", strategy.generate_name("iris-"))
    assert len(strategy.generate_name("n" * 100)) == 63
