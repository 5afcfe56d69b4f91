"""Bodies are read with their repeated keys."""

from __future__ import annotations

import pytest

from kserve_local.apiserver.bodies import decode, media_type
from kserve_local.errors import BadRequest, UnsupportedMediaType


def test_no_content_type_means_json() -> None:
    """The Kubernetes Python client sends none."""
    assert media_type("") == "application/json"
    assert media_type("Application/JSON; charset=utf-8") == "application/json"


def test_repeated_keys_are_told_with_their_path() -> None:
    body = b'{"spec": {"a": 1, "list": [{"x": 1, "x": 2}], "a": 3}, "kind": "X"}'
    value, repeated = decode(body, "application/json")
    assert value == {"spec": {"a": 3, "list": [{"x": 2}]}, "kind": "X"}
    assert repeated == ["spec.a", "spec.list[0].x"]


def test_apply_bodies_are_yaml() -> None:
    assert decode(b"a: {b: 1}", "application/apply-patch+yaml") == ({"a": {"b": 1}}, [])


def test_patches_may_be_lists() -> None:
    assert decode(b'[{"op": "add"}]', "application/json-patch+json")[0] == [{"op": "add"}]


def test_values_that_json_cannot_hold_do_not_get_in() -> None:
    """What cannot be written to the store again must not be accepted."""
    assert decode(b"a: 2026-01-02\n1: x", "application/yaml")[0] == {"a": "2026-01-02", "1": "x"}
    value, _ = decode(b'{"a": 123456789012345678901234567890}', "application/json")
    assert value == {"a": 1.2345678901234568e29}


@pytest.mark.parametrize(
    ("body", "type_"),
    [
        (b"{", "application/json"),
        (b'{"a": NaN}', "application/json"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "application/json"),
        (b"a: [", "application/yaml"),
        (b"a: !!python/object:os.system x", "application/yaml"),
    ],
)
def test_broken_bodies_are_bad_requests(body: bytes, type_: str) -> None:
    with pytest.raises(BadRequest):
        decode(body, type_)


def test_other_formats_are_unsupported() -> None:
    with pytest.raises(UnsupportedMediaType, match="application/json, application/yaml"):
        decode(b"<x/>", "application/xml")


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def envelope(api_version: str, kind: str, raw: bytes) -> bytes:
    type_meta = field(1, api_version.encode()) + field(2, kind.encode())
    return b"k8s\0" + field(1, type_meta) + field(2, raw) + field(3, b"") + field(4, b"")


PROTOBUF = "application/vnd.kubernetes.protobuf"


def test_protobuf_bodies_of_kubectl_create() -> None:
    """kubectl 1.32 and newer have no other form for `create configmap` and its like."""
    # Go writes empty strings and an empty creationTimestamp, too.
    metadata = field(1, b"c8") + field(2, b"") + field(3, b"default") + field(8, b"")
    data = field(2, field(1, b"a") + field(2, b"b")) + field(3, field(1, b"x") + field(2, b"\xff"))
    body = envelope("v1", "ConfigMap", field(1, metadata) + data)
    assert decode(body, PROTOBUF)[0] == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "c8", "namespace": "default"},
        "data": {"a": "b"},
        "binaryData": {"x": "/w=="},
    }


def test_protobuf_that_is_not_understood_is_refused_not_dropped() -> None:
    with pytest.raises(UnsupportedMediaType, match="field 9 of ConfigMap is not read"):
        decode(envelope("v1", "ConfigMap", field(9, b"x")), PROTOBUF)
    with pytest.raises(UnsupportedMediaType, match="Job in batch/v1 is not read from protobuf"):
        decode(envelope("batch/v1", "Job", b""), PROTOBUF)
    for broken in (b"{}", b"k8s\0\x0a\x7f", b"k8s\0\x08\xff", b"k8s\0\x0d1234"):
        with pytest.raises(BadRequest):
            decode(broken, PROTOBUF)
