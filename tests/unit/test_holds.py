"""The clocks that a breakpoint stops: which stand, and by how much they are behind."""

from __future__ import annotations

from kserve_local.interfaces.holds import Holds


def test_a_clock_stands_as_long_as_one_of_its_pods_does() -> None:
    holds = Holds()
    holds.stop("pod-a", ["g"], now=10.0)
    holds.stop("pod-b", ["g"], now=12.0)
    holds.go_on("pod-a", ["g"], now=15.0)
    assert holds.is_held("g")
    assert holds.clock("g", 17.0) == 10.0
    holds.go_on("pod-b", ["g"], now=20.0)
    assert not holds.is_held("g")
    assert holds.clock("g", 25.0) == 15.0


def test_only_what_falls_into_the_time_counts() -> None:
    """A deadline that began in the middle of a hold is moved by the rest of it."""
    holds = Holds()
    holds.stop("pod", ["g"], now=10.0)
    holds.go_on("pod", ["g"], now=20.0)
    assert holds.stood("g", 15.0, 30.0) == 5.0
    assert holds.stood("g", 20.0, 30.0) == 0.0
    assert holds.stood("other", 0.0, 30.0) == 0.0


def test_stopping_twice_is_stopping_once() -> None:
    holds = Holds()
    holds.stop("pod", ["g"], now=10.0)
    holds.stop("pod", ["g"], now=11.0)
    holds.go_on("pod", ["g"], now=12.0)
    holds.go_on("pod", ["g"], now=13.0)
    assert holds.clock("g", 20.0) == 18.0
    assert holds.held() == {}


def test_a_change_of_a_clock_is_told_once() -> None:
    told: list[str] = []
    holds = Holds()
    holds.listen(told.append)
    holds.stop("a", ["g", "h"], now=1.0)
    holds.stop("b", ["g"], now=2.0)
    assert told == ["g", "h"]
    holds.go_on("a", ["g", "h"], now=3.0)
    holds.go_on("b", ["g"], now=4.0)
    assert told == ["g", "h", "h", "g"]


def test_a_thousand_breakpoints_later_the_clock_is_still_behind() -> None:
    holds = Holds()
    for n in range(3000):
        holds.stop("pod", ["g"], now=2.0 * n)
        holds.go_on("pod", ["g"], now=2.0 * n + 1)
    assert holds.clock("g", 6000.0) == 3000.0
