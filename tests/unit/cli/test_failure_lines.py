"""A line that says that a service failed says why."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.cli.progress import labelled, waits_for
from kserve_local.cli.status import brief, told
from kserve_local.cli.views import view

FORBIDDEN = 'pods "a-" is forbidden: serviceaccount "nobody" not found'
READY = {"type": "Ready", "status": "True"}
WRAPPED = f'Revision "a-predictor-00001" failed with message: {FORBIDDEN}.'


def isvc(transition: str, *conditions: dict[str, str], **failure: str) -> Any:
    model = {"transitionStatus": transition, "lastFailureInfo": failure}
    return {
        "metadata": {"name": "a", "namespace": "d"},
        "status": {"modelStatus": model, "conditions": list(conditions)},
    }


def test_a_failed_load_without_a_failure_is_explained_by_conditions() -> None:
    """So it is for a Pod that may not even be made; KServe's model status has no more to say."""
    ready = {"type": "Ready", "status": "False", "reason": "X", "message": "of all"}
    own = {
        "type": "PredictorReady", "status": "False", "reason": "RevisionFailed",
        "message": WRAPPED,
    }  # fmt: skip
    seen = view(isvc("BlockedByFailedLoad", ready, own))
    assert (seen.state, seen.text) == ("Failed", "RevisionFailed")
    assert (seen.reason, seen.message) == ("RevisionFailed", WRAPPED)
    assert view(isvc("BlockedByFailedLoad", ready)).reason == "X"
    assert view(isvc("BlockedByFailedLoad")).text == "failed"
    failure = isvc("BlockedByFailedLoad", own, reason="ModelLoadFailed", message="no file")
    assert view(failure).text == "ModelLoadFailed"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (WRAPPED, FORBIDDEN),
        ("Traceback\n  File x\nValueError: bad\nNext step: mend", "ValueError: bad"),
        ('Revision "x" failed', 'Revision "x" failed'),
    ],
)
def test_one_line_holds_the_cause(message: str, line: str) -> None:
    assert told("Reason", message) == f"Reason: {line}"
    assert told("", message) == line


def test_only_a_table_cuts_it() -> None:
    long = "x" * 300
    assert told("R", long) == f"R: {long}"
    assert len(brief("R", long)) == 100


def test_of_a_refusal_the_table_has_what_is_wrong() -> None:
    """Who asked whom for what fills the column otherwise; it stands below the table."""
    wrong = "expected 6s <= 5s <= 1h0m0s: spec.template.metadata.annotations.a/window"
    message = (
        "fails to reconcile predictor: fails to reconcile knative service: admission webhook "
        f'"validation.webhook.serving.knative.dev" denied the request: validation failed: {wrong}'
    )
    assert brief("ReconcileFailed", message) == f"ReconcileFailed: ...{wrong}"


class _Answers:
    """A client that has one service and its Pods."""

    def __init__(self, service: Any, *pods: Any) -> None:
        self.service, self.pods = service, list(pods)

    async def get(self, *_: object) -> Any:
        return self.service

    async def list(self, *_: object, **__: object) -> Any:
        return self.pods


async def test_who_waits_for_a_service_that_failed_hears_why() -> None:
    failed = isvc("BlockedByFailedLoad", reason="ModelLoadFailed", message="no model\nNext step: x")
    ready = {"metadata": {"name": "p"}, "status": {"conditions": [READY]}}
    unready = {"metadata": {"name": "p"}, "status": {}}
    said = [
        await waits_for(_Answers(failed, unready), ("d", "a")),  # type: ignore[arg-type]
        await waits_for(_Answers(failed, ready), ("d", "a")),  # type: ignore[arg-type]
        await waits_for(_Answers(isvc("UpToDate", READY), unready), ("d", "a")),  # type: ignore[arg-type]
    ]
    assert said == ["ModelLoadFailed: no model; it is tried again", "", "starting"]


def test_a_namespace_is_told_where_names_repeat() -> None:
    names = [("one", "a"), ("two", "a"), ("one", "b")]
    assert labelled(names) == {names[0]: "one/a", names[1]: "two/a", names[2]: "b"}
