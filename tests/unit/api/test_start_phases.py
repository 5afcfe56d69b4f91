"""Phases of a start: whatever was stamped, they add up to the time from first to last."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.api import names, start_phases
from kserve_local.api.start_phases import PHASES, Start, start_of

SECONDS = st.floats(0, 1e6, allow_nan=False)
STARTS = st.builds(
    lambda taken: Start(dict(zip(PHASES, taken, strict=False))),
    st.lists(st.integers(0, 10**9), min_size=1, max_size=len(PHASES)),
)


@given(st.dictionaries(st.sampled_from(PHASES), SECONDS, min_size=1), SECONDS)
def test_the_phases_add_up_to_the_whole_time(begins: dict[str, float], end: float) -> None:
    """Also where stamps of two processes contradict each other, or phases have none."""
    start = start_of(begins, end)
    first = begins[next(p for p in PHASES if p in begins)]
    assert start.total == max(0, round(end * 1e6) - round(first * 1e6))
    assert min(start.phases.values()) >= 0
    assert tuple(start.phases) == PHASES[PHASES.index(next(iter(start.phases))) :]


def test_each_phase_lasts_until_the_next_one() -> None:
    begins = {"decide": 1.0, "resolve": 1.02, "download": 1.03, "environment": 1.1}
    begins |= {"start": 1.1, "load": 1.15, "warm": 1.25}
    assert start_of(begins, 1.26).seconds() == {
        "decide": 0.02, "resolve": 0.01, "download": 0.07, "environment": 0.0, "start": 0.05,
        "load": 0.1, "warm": 0.01,
    }  # fmt: skip


def test_what_did_not_happen_took_no_time() -> None:
    """Without a model nothing is downloaded; the time goes to what was going on."""
    start = start_of({"resolve": 5.0, "start": 5.5, "load": 6.0, "warm": 6.0}, 6.0)
    assert start.seconds() == {
        "resolve": 0.5, "download": 0.0, "environment": 0.0, "start": 0.5, "load": 0.0, "warm": 0.0,
    }  # fmt: skip


def test_without_a_stamp_there_is_no_start() -> None:
    assert start_of({}, 3.0).phases == {}


@given(STARTS)
def test_rounded_figures_add_up_as_well(start: Start) -> None:
    words = start.told().removeprefix("Started in ").partition(" ms: ")
    assert int(words[0]) == sum(int(w.split()[1]) for w in words[2].split(", "))
    assert int(words[0]) == round(start.total / 1000)


@given(STARTS)
def test_what_is_written_at_a_pod_is_read_back(start: Start) -> None:
    pod = {"metadata": {"annotations": {names.START: start_phases.written(start)}}}
    assert start_phases.of_pod(pod) == start


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"load": "long"}', "{}", '{"load": null}'])
def test_what_is_no_start_is_none(text: str) -> None:
    assert start_phases.of_pod({"metadata": {"annotations": {names.START: text}}}) is None


def test_a_table_has_room_for_the_longest_two() -> None:
    start = Start({"resolve": 3_000, "download": 0, "start": 12_400, "load": 31_000, "warm": 9_000})
    assert start.brief() == "55ms (load 31, start 12)"
    assert start.full() == "55ms (resolve 3, download 0, start 12, load 31, warm 9)"
    assert Start({"resolve": 0}).brief() == "0ms"
