"""Server-side apply: a manager's fields are its own."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.apiserver.apply import apply
from kserve_local.errors import Conflict


def obj(spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "X", "metadata": {"name": "x", **metadata}, "spec": spec}


def by(
    manager: str,
    wish: dict[str, Any],
    current: dict[str, Any] | None = None,
    *,
    force: bool = False,
    now: str = "t1",
) -> dict[str, Any]:
    return apply(current, wish, manager=manager, force=force, now=now, title='xs "x"')


def test_what_a_manager_leaves_out_is_removed() -> None:
    first = by("me", obj({"a": 1, "b": {"c": 2, "d": 3}}, labels={"l": "1"}))
    second = by("me", obj({"b": {"c": 2}}), first)
    assert second["spec"] == {"b": {"c": 2}}
    assert "labels" not in second["metadata"]


def test_fields_of_others_stay() -> None:
    first = by("me", obj({"a": 1}))
    changed = {**first, "spec": {"a": 1, "replicas": 5}}
    assert by("me", obj({"a": 2}), changed)["spec"] == {"a": 2, "replicas": 5}


def test_the_same_wish_again_changes_nothing() -> None:
    """An unchanged apply must not make a new resourceVersion."""
    first = by("me", obj({"a": 1}))
    assert by("me", obj({"a": 1}), first, now="t2") == first


def test_another_managers_value_is_a_conflict() -> None:
    first = by("me", obj({"a": 1, "b": 1}))
    with pytest.raises(Conflict) as caught:
        by("you", obj({"a": 2, "b": 1}), first)
    assert caught.value.message == (
        'Apply failed with 1 conflict: xs "x": conflict with "me": .spec.a'
    )
    cause = caught.value.causes[0]
    assert (cause.reason, cause.field) == ("FieldManagerConflict", ".spec.a")


def test_force_takes_the_field_over() -> None:
    first = by("me", obj({"a": 1, "b": 1}))
    second = by("you", obj({"a": 2}), first, force=True)
    assert second["spec"] == {"a": 2, "b": 1}
    third = by("me", obj({"b": 1}), second)
    assert third["spec"] == {"a": 2, "b": 1}, "a is yours now, and not removed with my wish"


def test_a_shared_field_goes_with_its_last_owner() -> None:
    first = by("me", obj({"a": 1}))
    second = by("you", obj({"a": 1}), first)
    third = by("me", obj({}), second)
    assert third["spec"] == {"a": 1}
    assert by("you", obj({}), third).get("spec", {}) == {}


def pod(*containers: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x", **metadata},
        "spec": {"containers": list(containers)},
    }


def env(**values: str) -> dict[str, Any]:
    return {"name": "c", "env": [{"name": k, "value": v} for k, v in values.items()]}


def test_elements_of_lists_with_keys_belong_to_managers_one_by_one() -> None:
    first = by("me", pod({**env(A="1", B="2"), "image": "a:b"}))
    second = by("you", pod(env(C="3")), first)
    assert second["spec"]["containers"] == [
        {
            "name": "c",
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "value": "2"},
                {"name": "C", "value": "3"},
            ],
            "image": "a:b",
        }
    ]
    third = by("me", pod({**env(B="2"), "image": "a:c"}), second)
    (container,) = third["spec"]["containers"]
    assert container["env"] == [{"name": "B", "value": "2"}, {"name": "C", "value": "3"}]
    assert container["image"] == "a:c"
    assert by("me", pod({**env(B="2"), "image": "a:c"}), third, now="t2") == third
    mine = third["metadata"]["managedFields"][0]["fieldsV1"]
    assert set(mine["f:spec"]["f:containers"]) == {'k:{"name":"c"}'}


def test_a_conflict_names_the_element() -> None:
    first = by("me", pod(env(A="1")))
    with pytest.raises(Conflict) as caught:
        by("you", pod(env(A="2")), first)
    assert caught.value.causes[0].field == '.spec.containers[name="c"].env[name="A"].value'


def test_an_element_that_nobody_wants_goes_with_what_was_filled_in() -> None:
    ports = [{"containerPort": 8080, "name": "a"}, {"containerPort": 9000, "name": "b"}]
    first = by("me", pod({"name": "c", "ports": ports}))
    for port in first["spec"]["containers"][0]["ports"]:
        port["protocol"] = "TCP"  # the server's default
    second = by("me", pod({"name": "c", "ports": ports[1:]}), first)
    assert second["spec"]["containers"][0]["ports"] == [
        {"containerPort": 9000, "name": "b", "protocol": "TCP"}
    ]


def test_finalizers_are_a_set_that_managers_share() -> None:
    first = by("me", pod({"name": "c"}, finalizers=["a.example/x"]))
    second = by("you", pod({"name": "c"}, finalizers=["b.example/y"]), first)
    assert second["metadata"]["finalizers"] == ["a.example/x", "b.example/y"]
    third = by("me", pod({"name": "c"}), second)
    assert third["metadata"]["finalizers"] == ["b.example/y"]


def test_lists_without_keys_are_one_field() -> None:
    first = by("me", pod({"name": "c", "args": ["1", "2"]}))
    with pytest.raises(Conflict) as caught:
        by("you", pod({"name": "c", "args": ["2"]}), first)
    assert caught.value.causes[0].field == '.spec.containers[name="c"].args'
    second = by("me", pod({"name": "c", "args": ["2"]}), first)
    assert second["spec"]["containers"][0]["args"] == ["2"]
