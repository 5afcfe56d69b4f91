"""Knative's condition mechanics."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_local.reconcile.conditions import ConditionSet

T1, T2 = "2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z"


def fresh(*conditions: dict[str, str], now: str = T2) -> ConditionSet:
    return ConditionSet("Ready", ("A", "B"), conditions, now=now)


def ready(conditions: ConditionSet) -> tuple[str, str]:
    condition = conditions.get("Ready") or {}
    return condition["status"], condition.get("reason", "")


def test_a_new_set_is_unknown_and_sorted() -> None:
    result = fresh().result()
    assert [(c["type"], c["status"]) for c in result] == [
        ("A", "Unknown"),
        ("B", "Unknown"),
        ("Ready", "Unknown"),
    ]


def test_happy_needs_every_dependent() -> None:
    conditions = fresh()
    conditions.mark_true("A")
    assert ready(conditions) == ("Unknown", "")
    conditions.mark_true("B")
    assert ready(conditions) == ("True", "")


def test_false_trumps_unknown() -> None:
    conditions = fresh()
    conditions.mark_false("A", "Broken", "it is")
    conditions.mark_unknown("B", "Waiting")
    assert ready(conditions) == ("False", "Broken")
    conditions.mark_true("B")
    assert ready(conditions) == ("False", "Broken")


def test_the_last_unknown_gives_the_reason() -> None:
    conditions = fresh()
    conditions.mark_unknown("A", "First")
    conditions.mark_unknown("B", "Second")
    assert ready(conditions) == ("Unknown", "Second")


def test_others_carry_severity_info_and_gate_nothing() -> None:
    conditions = fresh()
    conditions.mark_true("A")
    conditions.mark_true("B")
    conditions.mark_false("Other", "No")
    assert ready(conditions) == ("True", "")
    assert (conditions.get("Other") or {})["severity"] == "Info"


def test_a_condition_that_ends_as_it_began_keeps_its_time() -> None:
    stored = {"type": "A", "status": "True", "lastTransitionTime": T1}
    conditions = fresh(stored)
    conditions.mark_false("A", "Blip")
    conditions.mark_true("A")
    assert (conditions.result())[0] == stored


def test_a_new_reason_is_a_transition() -> None:
    stored = {"type": "A", "status": "False", "reason": "X", "lastTransitionTime": T1}
    conditions = fresh(stored)
    conditions.mark_false("A", "Y")
    assert conditions.result()[0]["lastTransitionTime"] == T2


STEPS = st.lists(
    st.tuples(st.sampled_from(["true", "false", "unknown"]), st.sampled_from(["A", "B", "Other"])),
    max_size=12,
)


@given(steps=STEPS)
def test_happy_is_what_the_dependents_make_it(steps: list[tuple[str, str]]) -> None:
    """After any sequence: True only if all are True, False as soon as one is."""
    conditions = fresh()
    for how, type_ in steps:
        getattr(conditions, f"mark_{how}")(type_)
    parts = {conditions.status("A"), conditions.status("B")}
    happy = conditions.status("Ready")
    if "False" in parts:
        assert happy == "False"
    elif parts == {"True"}:
        assert happy == "True"
    else:
        assert happy == "Unknown"
    again = ConditionSet("Ready", ("A", "B"), conditions.result(), now=T1)
    assert again.result() == conditions.result()
