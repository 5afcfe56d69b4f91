"""A short run of `tests/soak/canary.py`: 100 requests a second through a whole canary."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.project import IN_DOCKER
from tests.soak.canary import CHANCE, chance, running


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(IN_DOCKER, reason="about the data plane, which is the same")
def test_a_canary_loses_no_request_and_counts_what_chance_allows(tmp_path: Path) -> None:
    with running(tmp_path, rate=100.0, count=200) as canary:
        canary.go()
    assert canary.problems == []
    assert len(canary.steps) == 6
    assert canary.stream.sent == len(canary.stream.answers) > 6 * 200


def test_the_bound_of_chance() -> None:
    """Exact tails of the binomial distribution, doubled."""
    assert chance(5, 10, 0.5) == 1.0
    assert chance(0, 10, 0.5) == pytest.approx(2 / 1024)
    assert chance(10, 10, 0.5) == pytest.approx(2 / 1024)
    assert chance(1, 3, 0.1) == pytest.approx(2 * (1 - 0.9**3))
    assert chance(200, 2000, 0.1) > 0.9
    # A round robin that takes every 20th for a tenth is found at once.
    assert chance(100, 2000, 0.1) < CHANCE
