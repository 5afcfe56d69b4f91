"""What `status` says of a service that is not Ready: the most telling place wins."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.cli.status import headline
from kserve_local.supervisor.summary import why

FAILED = {"reason": "ModelLoadFailed", "message": "no licence", "exitCode": 1}
EVENT = {"reason": "InternalError", "message": "StorageURI not supported: ..."}


def isvc(model: dict[str, Any] | None = None, **conditions: tuple[str, str, str]) -> dict[str, Any]:
    listed = [
        {"type": t, "status": s, "reason": r, "message": m} for t, (s, r, m) in conditions.items()
    ]
    return {"status": {"conditions": listed, "modelStatus": model or {}}}


WAITS = ("Unknown", "RevisionMissing", "waiting")
NOT_CREATED = ("False", "Predictor ingress not created", "")


@pytest.mark.parametrize(
    ("service", "event", "expected"),
    [
        (isvc(Ready=("True", "", "")), EVENT, ("", "")),
        (
            isvc({"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": FAILED}),
            EVENT,
            ("ModelLoadFailed", "no licence"),
        ),
        # KServe keeps the failure after it is gone; it is no reason any more.
        (
            isvc({"transitionStatus": "UpToDate", "lastFailureInfo": FAILED}, Ready=WAITS),
            None,
            ("RevisionMissing", "waiting"),
        ),
        (
            isvc(
                Ready=NOT_CREATED,
                PredictorReady=("False", "RevisionMissing", "none is ready"),
                PredictorConfigurationReady=("False", "RevisionFailed", "no claim"),
            ),
            None,
            ("RevisionFailed", "no claim"),
        ),
        (isvc(Ready=("Unknown", "", "")), EVENT, ("InternalError", EVENT["message"])),
        (
            isvc(Ready=("Unknown", "", "")),
            {"reason": "NotImplemented", "message": "no autoscaler"},
            ("", ""),
        ),
        (isvc(Ready=("False", "Stopped", "")), EVENT, ("Stopped", "")),
    ],
)
def test_why(service: dict[str, Any], event: Any, expected: tuple[str, str]) -> None:
    assert why(service, event) == expected


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("", ""),
        ("one line", "one line"),
        ("usage: x\n  [--y]\nx: error: bad\nNext step: look", "x: error: bad"),
        ("Next step: look", "Next step: look"),
    ],
)
def test_the_headline_is_the_line_that_says_most(message: str, line: str) -> None:
    assert headline(message) == line
