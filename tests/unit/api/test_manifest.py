"""YAML text to objects as kubectl reads it, with the place of every field."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.api.manifest import load


def only(text: str) -> Any:
    documents = load(text)
    assert len(documents) == 1, documents
    assert documents[0].error is None, documents[0].error
    return documents[0].object


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", True),
        ("No", False),
        ("on", True),
        ("OFF", False),
        ("y", True),
        ("n", False),
        ("true", True),
        ('"yes"', "yes"),
        ("'on'", "on"),
        ("!!str yes", "yes"),
        ("yEs", "yEs"),
        ("1", 1),
        ("-7", -7),
        ("010", 8),
        ("0o10", 8),
        ("0x1F", 31),
        ("0b101", 5),
        ("1_000", 1000),
        ("089", 89),
        ("1.0", 1),
        ("0.5", 0.5),
        ("1e3", 1000),
        ("1.5e-2", 0.015),
        ("18446744073709551615", 18446744073709551615),
        ("1.2.3", "1.2.3"),
        ("2020-01-01", "2020-01-01"),
        ("12:30", "12:30"),
        ("1Gi", "1Gi"),
        ("~", None),
        ("null", None),
        ("", None),
        ("a-b", "a-b"),
    ],
)
def test_plain_scalars_mean_what_kubectl_makes_of_them(text: str, value: Any) -> None:
    """sigs.k8s.io/yaml on go-yaml v2: more words are booleans than in YAML 1.2."""
    got = only(f"a: {text}\n")["a"]
    assert got == value
    assert type(got) is type(value)


def test_field_names_are_always_text() -> None:
    assert only("1: a\ntrue: b\n2.5: c\n") == {"1": "a", "true": "b", "2.5": "c"}


@pytest.mark.parametrize("text", ["a: .nan\n", "a: -.inf\n", "? [1]\n: a\n", "? \n: a\n"])
def test_what_json_cannot_say_is_refused(text: str) -> None:
    (document,) = load(text)
    assert document.error is not None


def test_every_field_and_item_has_its_place() -> None:
    text = """\
# a comment
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {x: "1"}}
spec:
  containers:
  - name: one
    env:
    - name: A
      value: b
  - name: two
"""
    (document,) = load(text, "pod.yaml")
    assert document.path == "pod.yaml"
    assert document.position == (2, 1)
    assert document.position_of(("kind",)) == (3, 1)
    assert document.position_of(("metadata", "labels", "x")) == (4, 30)
    assert document.position_of(("spec", "containers", 0)) == (7, 5)
    assert document.position_of(("spec", "containers", 0, "env", 0, "value")) == (10, 7)
    assert document.position_of(("spec", "containers", 1, "name")) == (11, 5)


def test_a_missing_field_is_placed_at_its_parent() -> None:
    (document,) = load("spec:\n  predictor:\n    model: {}\n")
    assert document.position_of(("spec", "predictor", "model", "modelFormat", "name")) == (3, 5)
    assert document.position_of(("metadata", "name")) == (1, 1)


def test_documents_are_counted_through_the_file() -> None:
    text = "a: 1\n---\n# nothing\n---\n\n--- # comment\nb:\n  c: 2\n"
    first, second = load(text)
    assert (first.object, second.object) == ({"a": 1}, {"b": {"c": 2}})
    assert second.position_of(("b", "c")) == (8, 3)


def test_a_broken_document_leaves_the_others_readable() -> None:
    """kubectl splits a file before it parses."""
    good, broken, last = load("a: 1\n---\nb: [1\nc: 2\n---\nd: 3\n")
    assert good.object == {"a": 1}
    assert broken.error is not None
    assert broken.error.message.startswith("not YAML: ")
    assert broken.error.position[0] in (3, 4)
    assert last.object == {"d": 3}


def test_a_tab_is_named() -> None:
    (document,) = load("a:\n\tb: 1\n")
    assert document.error is not None
    assert "tab" in document.error.message
    assert document.error.position == (2, 1)


def test_repeated_fields_are_reported_where_the_later_one_stands() -> None:
    (document,) = load("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n")
    assert document.object == {"a": 1, "b": {"c": 3, "d": 2}}
    assert document.duplicates == [(("b", "c"), (5, 3))]
    assert document.position_of(("b", "c")) == (5, 3)


def test_lists_are_opened() -> None:
    text = """\
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Secret
  metadata: {name: a}
- kind: ConfigMap
  apiVersion: v1
"""
    secret, config = load(text)
    assert secret.object["metadata"] == {"name": "a"}
    assert secret.position_of(("metadata", "name")) == (6, 14)
    assert config.position == (7, 3)


def test_items_of_a_typed_list_get_its_kind() -> None:
    text = "apiVersion: v1\nkind: SecretList\nitems:\n- metadata: {name: a}\n"
    assert only(text) == {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}}


def test_anchors_aliases_and_merges() -> None:
    text = "base: &b {x: 1, z: 2}\nsame: *b\nmore: {<<: *b, z: 3}\nboth: {<<: [{x: 5}, *b]}\n"
    assert only(text) == {
        "base": {"x": 1, "z": 2},
        "same": {"x": 1, "z": 2},
        "more": {"z": 3, "x": 1},
        "both": {"x": 5, "z": 2},
    }


def test_what_an_alias_stands_for_is_a_copy() -> None:
    """Objects are changed by copying along a path; a shared part would change twice."""
    obj = only("a: &a {b: {c: 1}}\nd: *a\n")
    assert obj["a"]["b"] is not obj["d"]["b"]


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (document,) = load("\n".join(lines))
    assert document.error is not None
    assert "excessive aliasing" in document.error.message


def test_an_anchor_inside_itself_is_refused() -> None:
    (document,) = load("a: &a\n- *a\n")
    assert document.error is not None
    assert "contains itself" in document.error.message
    assert document.error.position == (2, 3)


def test_depth_is_bounded() -> None:
    (document,) = load("[" * 5000 + "]" * 5000)
    assert document.error is not None
    assert "nested deeper" in document.error.message


def test_json_is_read_with_places_too() -> None:
    (document,) = load('{\n\t"apiVersion": "v1",\n\t"kind": "Pod"\n}\n')
    assert document.is_kubernetes
    assert document.position_of(("kind",)) == (3, 2)
    assert only('{"a": "\\u00e9\\ud83d\\ude00"}') == {"a": "é😀"}


def test_json_errors_have_a_place() -> None:
    (document,) = load('{"a": "\\ud83d\\ude00",\n "b": }')
    assert document.error is not None
    assert document.error.position == (2, 7)


@pytest.mark.parametrize(
    ("text", "expected"), [("a: 1", False), ("- a", False), ("just words", False)]
)
def test_what_is_not_kubernetes_is_known_as_such(text: str, expected: bool) -> None:
    (document,) = load(text)
    assert document.is_kubernetes is expected


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n---\n", "null\n"])
def test_empty_files_hold_nothing(text: str) -> None:
    assert load(text) == []
