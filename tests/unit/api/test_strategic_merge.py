"""Strategic merge patch: merge keys, directives and order, as Kubernetes does them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.api.strategic_merge import merge
from kserve_local.errors import BadRequest


def names(items: list[dict[str, Any]]) -> list[str]:
    return [item["name"] for item in items]


def test_objects_merge_key_by_key_and_null_removes() -> None:
    """Labels, resources, nodeSelector: maps all the way down."""
    original = {"a": {"x": 1, "y": {"z": 1}}, "b": 1, "c": 2}
    patch = {"a": {"y": {"w": 2}, "x": None}, "b": None, "d": {"e": None, "f": 1}, "g": None}
    assert merge(original, patch, kind="ConfigMap") == {
        "a": {"y": {"z": 1, "w": 2}},
        "c": 2,
        "d": {"f": 1},
    }


@pytest.mark.parametrize(
    ("kind", "field", "key"),
    [
        ("Container", "env", "name"),
        ("Container", "ports", "containerPort"),
        ("Container", "volumeMounts", "mountPath"),
        ("Container", "volumeDevices", "devicePath"),
        ("PodSpec", "containers", "name"),
        ("PodSpec", "initContainers", "name"),
        ("PodSpec", "volumes", "name"),
        ("PodSpec", "imagePullSecrets", "name"),
        ("PodSpec", "hostAliases", "ip"),
        ("PodSpec", "topologySpreadConstraints", "topologyKey"),
        ("ServiceAccount", "secrets", "name"),
        ("WithConditions", "conditions", "type"),
    ],
)
def test_lists_with_a_merge_key(kind: str, field: str, key: str) -> None:
    """Elements with the same key merge, the others stay."""
    original = {field: [{key: 1, "a": 1}, {key: 2, "a": 2}]}
    patch = {field: [{key: 2, "b": 3}]}
    merged = merge(original, patch, kind=kind)[field]
    assert merged == [{key: 1, "a": 1}, {key: 2, "a": 2, "b": 3}]


def test_a_services_ports_merge_by_port() -> None:
    """Not by containerPort."""
    original = {"spec": {"ports": [{"port": 80, "name": "http"}]}}
    patch = {"spec": {"ports": [{"port": 80, "targetPort": 8080}]}}
    merged = merge(original, patch, kind="Service")
    assert merged["spec"]["ports"] == [{"port": 80, "name": "http", "targetPort": 8080}]


@pytest.mark.parametrize("field", ["tolerations", "args", "command"])
def test_other_lists_are_replaced(field: str) -> None:
    """As a whole."""
    kind = "PodSpec" if field == "tolerations" else "Container"
    assert merge({field: [1, 2]}, {field: [3]}, kind=kind) == {field: [3]}


def test_lists_below_lists_merge_too() -> None:
    """A Deployment's container's env."""

    def deployment(env: list[dict[str, str]]) -> dict[str, Any]:
        container = {"name": "c", "env": env}
        return {"spec": {"template": {"spec": {"containers": [container]}}}}

    merged = merge(
        deployment([{"name": "A", "value": "1"}, {"name": "B", "value": "1"}]),
        deployment([{"name": "B", "value": "2"}]),
        kind="Deployment",
    )
    container = merged["spec"]["template"]["spec"]["containers"][0]
    assert container["env"] == [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]


def test_new_elements_come_first_as_kubectl_patch_shows() -> None:
    """An element that only the patch has goes in front of those that only the original has."""
    original = {"containers": [{"name": "a"}, {"name": "b"}]}
    patch = {"containers": [{"name": "new"}]}
    assert names(merge(original, patch, kind="PodSpec")["containers"]) == ["new", "a", "b"]
    both = {"containers": [{"name": "b"}, {"name": "new"}]}
    assert names(merge(original, both, kind="PodSpec")["containers"]) == ["a", "b", "new"]


def test_set_element_order() -> None:
    """`$setElementOrder/<list>` decides, with or without the list itself."""
    original = {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}
    order = {"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}]}
    assert names(merge(original, order, kind="PodSpec")["containers"]) == ["b", "c", "a"]
    patch = {
        "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}, {"name": "new"}],
        "containers": [{"name": "new"}],
    }
    assert names(merge(original, patch, kind="PodSpec")["containers"]) == ["a", "b", "new", "c"]


def test_patch_delete_and_replace() -> None:
    """On an element, a list, a map, and the whole object."""
    original = {"containers": [{"name": "a"}, {"name": "b"}], "nodeSelector": {"x": "1"}}
    gone = {"containers": [{"name": "a", "$patch": "delete"}]}
    assert names(merge(original, gone, kind="PodSpec")["containers"]) == ["b"]
    replaced = {"containers": [{"name": "z"}, {"$patch": "replace"}]}
    assert merge(original, replaced, kind="PodSpec")["containers"] == [{"name": "z"}]
    selector = {"nodeSelector": {"$patch": "replace", "y": "2"}}
    assert merge(original, selector, kind="PodSpec")["nodeSelector"] == {"y": "2"}
    assert (
        merge(original, {"nodeSelector": {"$patch": "delete"}}, kind="PodSpec")["nodeSelector"]
        == {}
    )
    assert merge(original, {"$patch": "replace", "a": 1}, kind="PodSpec") == {"a": 1}
    assert merge(original, {"$patch": "delete"}, kind="PodSpec") == {}


def test_retain_keys() -> None:
    """A volume changes its kind; everything unlisted goes."""
    original = {"volumes": [{"name": "v", "emptyDir": {}}]}
    volume = {"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/x"}}
    merged = merge(original, {"volumes": [volume]}, kind="PodSpec")
    assert merged == {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}


def test_lists_of_scalars() -> None:
    """Finalizers merge as a set; elements can be deleted."""
    original = {"metadata": {"finalizers": ["a", "b"]}}
    added = merge(original, {"metadata": {"finalizers": ["c", "b"]}}, kind="Pod")
    assert sorted(added["metadata"]["finalizers"]) == ["a", "b", "c"]
    patch = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}
    assert merge(original, patch, kind="Pod") == {"metadata": {"finalizers": ["b"]}}


@pytest.mark.parametrize(
    "patch",
    [
        {"$patch": "bogus"},
        {"containers": [{"image": "x"}]},
        {"containers": ["x"]},
        {"$setElementOrder/containers": "a"},
        {"$deleteFromPrimitiveList/x": "a"},
        {"$retainKeys": "a"},
        {"$retainKeys": ["a"], "b": 1},
        {"$bogus": 1},
        {"$setElementOrder/containers": "a", "containers": [{"name": "a"}]},
    ],
)
def test_malformed_patches_are_refused(patch: dict[str, Any]) -> None:
    """With a 400, not half applied."""
    with pytest.raises(BadRequest):
        merge({"containers": [{"name": "a"}]}, patch, kind="PodSpec")


_ENV = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from("ABCDE"), "value": st.sampled_from("12")}),
    unique_by=lambda entry: entry["name"],
)
_CONTAINER = st.fixed_dictionaries(
    {"name": st.just("c")},
    optional={
        "env": _ENV,
        "image": st.sampled_from(["x", "y"]),
        "args": st.lists(st.sampled_from("ab")),
        "resources": st.fixed_dictionaries(
            {"limits": st.dictionaries(st.sampled_from(["cpu", "memory"]), st.just("1"))}
        ),
    },
)


@given(_CONTAINER, _CONTAINER)
def test_merging_again_changes_nothing_and_arguments_stay(
    original: dict[str, Any], patch: dict[str, Any]
) -> None:
    """Patching is idempotent and pure, and the patch's values are all there."""
    before = copy.deepcopy((original, patch))
    merged = merge(original, patch, kind="Container")
    assert (original, patch) == before
    assert merge(merged, patch, kind="Container") == merged
    values = {entry["name"]: entry["value"] for entry in merged.get("env", [])}
    for entry in patch.get("env", []):
        assert values[entry["name"]] == entry["value"]
    wanted = {e["name"] for e in (*original.get("env", []), *patch.get("env", []))}
    assert set(values) == wanted
    assert merge({}, patch, kind="Container") == patch
