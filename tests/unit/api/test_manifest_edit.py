"""Edits of a manifest's text: the one field changes, every other character stays."""

from __future__ import annotations

import difflib
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.api.manifest import load
from kserve_local.api.manifest_edit import CannotEdit, with_value

CANARY = ("spec", "predictor", "canaryTrafficPercent")


def edit(text: str, value: int | None, *, at: int = 0, path: tuple[str, ...] = CANARY) -> str:
    return with_value(text, load(text)[at], path, value)


def lines(before: str, after: str) -> list[str]:
    """Return the lines that went (-) and came (+)."""
    changes = difflib.ndiff(before.splitlines(keepends=True), after.splitlines(keepends=True))
    return [line.rstrip("\n") for line in changes if line[:2] in ("- ", "+ ")]


ISVC = dedent(
    """\
    # The team's service; ask Ana before you touch it.
    apiVersion: "serving.kserve.io/v1beta1"   # quoted
    kind: InferenceService
    metadata: {name: iris,  labels: {a: 'b'}}
    spec:
      predictor:   # the model
        # canary, see the wiki
        canaryTrafficPercent: 10   # ten for now

        model:
            modelFormat:
               name: sklearn
            storageUri: >-
              gs://kfserving-examples/models/
              sklearn
    # the end
    """
)


def test_a_value_is_replaced_where_it_stands() -> None:
    assert lines(ISVC, edit(ISVC, 50)) == [
        "-     canaryTrafficPercent: 10   # ten for now",
        "+     canaryTrafficPercent: 50   # ten for now",
    ]


def test_what_is_there_already_changes_nothing() -> None:
    assert edit(ISVC, 10) == ISVC
    assert edit(edit(ISVC, None), None) == edit(ISVC, None)


def test_a_field_goes_with_its_line_and_comes_back_as_the_first() -> None:
    without = edit(ISVC, None)
    assert lines(ISVC, without) == ["-     canaryTrafficPercent: 10   # ten for now"]
    assert lines(without, edit(without, 0)) == ["+     canaryTrafficPercent: 0"]
    assert "predictor:   # the model\n    canaryTrafficPercent: 0\n    # canary" in edit(without, 0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("canaryTrafficPercent:", "canaryTrafficPercent: 5"),
        ("canaryTrafficPercent: ~", "canaryTrafficPercent: 5"),
        ("canaryTrafficPercent: # none", "canaryTrafficPercent: 5 # none"),
        ('canaryTrafficPercent: "10"', "canaryTrafficPercent: 5"),
        ("canaryTrafficPercent: &p 10", "canaryTrafficPercent: 5"),
        ("canaryTrafficPercent: !!int 10", "canaryTrafficPercent: 5"),
        ("'canaryTrafficPercent' : 10", "'canaryTrafficPercent' : 5"),
    ],
)
def test_every_way_to_write_a_value(before: str, after: str) -> None:
    text = ISVC.replace("canaryTrafficPercent: 10   # ten for now", before)
    changed = edit(text, 5)
    assert changed == ISVC.replace("canaryTrafficPercent: 10   # ten for now", after)
    gone = edit(text, None)
    assert lines(text, gone) == [f"-     {before}"]


@pytest.mark.parametrize(
    ("before", "added", "removed"),
    [
        (
            "predictor: {model: {storageUri: a}, canaryTrafficPercent: 10}",
            "predictor: {model: {storageUri: a}, canaryTrafficPercent: 5}",
            "predictor: {model: {storageUri: a}}",
        ),
        (
            "predictor: {canaryTrafficPercent: 10 , model: {storageUri: a}}",
            "predictor: {canaryTrafficPercent: 5 , model: {storageUri: a}}",
            "predictor: {model: {storageUri: a}}",
        ),
        (
            'predictor: { "model": {storageUri: a} }',
            'predictor: { "canaryTrafficPercent": 5, "model": {storageUri: a} }',
            'predictor: { "model": {storageUri: a} }',
        ),
        ("predictor: {}", "predictor: {canaryTrafficPercent: 5}", "predictor: {}"),
    ],
)
def test_flow_style(before: str, added: str, removed: str) -> None:
    text = f"kind: InferenceService\nspec:\n  {before}\n"
    assert edit(text, 5) == f"kind: InferenceService\nspec:\n  {added}\n"
    assert edit(text, None) == f"kind: InferenceService\nspec:\n  {removed}\n"


def test_json_stays_json() -> None:
    text = dedent(
        """\
        {
          "kind": "InferenceService",
          "spec": {
        \t"predictor": {
        \t\t"model": {"storageUri": "gs://ü/😀"}
        \t}
          }
        }
        """
    ).replace("\t", "    ")
    added = edit(text, 5)
    assert lines(text, added) == ['+         "canaryTrafficPercent": 5,']
    assert edit(added, None) == text


DOCUMENTS = (
    "---\n# first 😀\nkind: A\nspec: {predictor: {x: 1}}\n--- # second\n\n"
    "kind: InferenceService\nspec:\n  predictor:\n    x: ü\n...\n---\n"
    "kind: List\nitems:\n- kind: B\n  spec:\n    predictor:\n      x: 1\n- kind: C\n  spec:\n"
    "    predictor: {x: 1}\n"
)


@pytest.mark.parametrize(
    ("at", "line"),
    [
        (0, "+ spec: {predictor: {canaryTrafficPercent: 7, x: 1}}"),
        (1, "+     canaryTrafficPercent: 7"),
        (2, "+       canaryTrafficPercent: 7"),
        (3, "+     predictor: {canaryTrafficPercent: 7, x: 1}"),
    ],
)
def test_one_of_several_documents(at: int, line: str) -> None:
    changed = edit(DOCUMENTS, 7, at=at)
    assert [x for x in lines(DOCUMENTS, changed) if x.startswith("+")] == [line]
    assert [d.object["spec"]["predictor"].get(CANARY[-1]) for d in load(changed)] == [
        7 if n == at else None for n in range(4)
    ]


def test_the_last_line_may_be_unended() -> None:
    text = "spec:\n  predictor:\n    x: 1\n    canaryTrafficPercent: 10"
    assert edit(text, None) == "spec:\n  predictor:\n    x: 1\n"
    assert edit(text, 5) == text.replace("10", "5")


def test_an_anchored_mapping_takes_a_new_field() -> None:
    text = "spec:\n  predictor: &p\n    # why\n    x: 1\n"
    assert edit(text, 5) == (
        "spec:\n  predictor: &p\n    canaryTrafficPercent: 5\n    # why\n    x: 1\n"
    )


@pytest.mark.parametrize(
    ("text", "value", "why"),
    [
        ("a: &p {x: 1}\nspec: {predictor: *p}\n", 5, "written as an alias"),
        ("a: &s {predictor: {x: 1}}\nspec: {<<: *s}\n", 5, "merge key"),
        (
            "a: &p {canaryTrafficPercent: 1}\nspec: {predictor: {<<: *p, x: 1}}\n",
            None,
            "merge key",
        ),
        # Another field holds what the anchor names.
        (
            "spec:\n  predictor:\n    canaryTrafficPercent: &n 10\n    minReplicas: *n\n",
            5,
            "stands for several",
        ),
        # Given twice: the earlier one would come up again.
        (
            "spec:\n  predictor:\n    canaryTrafficPercent: 1\n    canaryTrafficPercent: 10\n",
            None,
            "stands for several",
        ),
        ("spec:\n  predictor: &p\n    x: 1\n  transformer: *p\n", 5, "stands for several"),
        ("spec:\n  transformer: {}\n", 5, "there is no spec.predictor"),
        ("spec:\n", 5, "there is no spec"),
    ],
)
def test_what_one_change_cannot_say_is_refused(text: str, value: int | None, why: str) -> None:
    with pytest.raises(CannotEdit, match=why):
        edit(text, value)


def test_a_field_that_a_merge_brings_is_set_beside_it() -> None:
    text = "a: &p {canaryTrafficPercent: 1}\nspec:\n  predictor:\n    <<: *p\n    x: 1\n"
    assert lines(text, edit(text, 100)) == ["+     canaryTrafficPercent: 100"]


words = st.text(st.sampled_from("aé😀_ #:-\"'"), min_size=1, max_size=6).map(
    lambda t: '"' + t.replace('"', "'") + '"'
)


@given(
    comments=st.lists(st.sampled_from(["", "  # c", "   #ü😀"]), min_size=6, max_size=6),
    quoted=st.lists(words, min_size=2, max_size=2),
    have=st.one_of(st.none(), st.integers(0, 100)),
    want=st.one_of(st.none(), st.integers(0, 100)),
    indent=st.integers(1, 5),
)
def test_only_the_field_ever_changes(
    comments: list[str], quoted: list[str], have: int | None, want: int | None, indent: int
) -> None:
    step = " " * indent
    text = f"kind: K{comments[0]}\nx: {quoted[0]}{comments[1]}\nspec:{comments[2]}\n"
    text += f"{step}predictor:{comments[3]}\n"
    if have is not None:
        text += f"{step * 2}canaryTrafficPercent: {have}{comments[4]}\n"
    text += f"{step * 2}y: {quoted[1]}{comments[5]}\n"
    changed = edit(text, want)
    kept = [line for line in text.splitlines() if "canaryTrafficPercent" not in line]
    assert [x for x in changed.splitlines() if "canaryTrafficPercent" not in x] == kept
    obj: Any = load(changed)[0].object
    assert obj["spec"]["predictor"].get("canaryTrafficPercent") == want
