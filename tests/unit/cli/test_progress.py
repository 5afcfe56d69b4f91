"""Which failures `up --wait` takes for those of now."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.cli.progress import _has_failed

BEGUN = 1_780_000_000


def pod(**terminated: Any) -> dict[str, Any]:
    state = {"terminated": terminated}
    return {"status": {"containerStatuses": [{"name": "c", "lastState": state}]}}


@pytest.mark.parametrize(
    ("terminated", "failed"),
    [
        ({"exitCode": 1, "reason": "Error", "startedAt": "2026-05-28T20:26:41Z"}, True),
        ({"exitCode": 1, "reason": "Error", "startedAt": "2026-05-28T20:26:39Z"}, False),
        ({"exitCode": 1, "reason": "ContainerCannotRun"}, True),
        ({"exitCode": 0, "reason": "Completed"}, False),
        # Gone with its supervisor: it is being started again.
        ({"exitCode": 137, "reason": "ContainerStatusUnknown"}, False),
    ],
)  # fmt: skip
def test_only_what_was_tried_since_the_start_counts(
    terminated: dict[str, Any], failed: bool
) -> None:
    assert _has_failed(pod(**terminated), BEGUN) is failed
