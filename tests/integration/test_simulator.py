"""The simulator against the real thing: a three-minute trace takes the same steps in both."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.project import of_processes, project
from tests.integration.simulated_world import NAME, compare, differ, write_project

pytestmark = of_processes
SPEED = 5.0
"""At full speed: tests/soak/simulator.py."""


def test_a_trace_takes_the_same_steps_for_real_and_simulated(tmp_path: Path) -> None:
    """One tick apart at most; from zero, up twice, down, and to zero again."""
    write_project(tmp_path / "project", SPEED)
    with project(tmp_path / "project") as world:
        world.up()
        world.run("wait", "--for", "scaled-to-zero", NAME)
        compare(world, SPEED)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ([(0, 0), (10, 1), (12, 3), (50, 1)], True),
        ([(0, 0), (11.9, 1), (13, 3), (48.1, 1)], True),
        ([(0, 0), (12, 3), (50, 1)], True),
        ([(0, 0), (10, 1), (12, 3), (53, 1)], False),
        ([(0, 0), (10, 1), (12, 4), (50, 1)], False),
        ([(0, 0), (10, 1), (12, 3)], False),
        ([(0, 0), (10, 1), (12, 3), (20, 2), (50, 1)], False),
    ],
)
def test_a_shift_of_a_tick_is_no_difference(other: list[tuple[float, int]], same: bool) -> None:
    assert (differ([(0, 0), (10, 1), (12, 3), (50, 1)], other, 2.0) == []) == same
