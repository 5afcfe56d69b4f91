"""How a rollout stands, what the commands would do about it, and when they would not."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kserve_local.api.meta import Object, timestamp
from kserve_local.cli.rollout_plan import Action, Step, is_done, plan
from kserve_local.cli.rollout_view import ComponentView, view_of
from kserve_local.cli.rollout_words import (
    as_json,
    history_table,
    meaning,
    next_steps,
    status_table,
)
from kserve_local.errors import KServeLocalError, ServiceUnavailable, UsageError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAME = "iris-predictor-{:05d}"

Split = list[tuple[int, int, bool]]
"""Number of the revision, percent, whether it is the latest target."""


def revision(number: int, ready: str = "True", *, wanted: int = 1, uri: str = "") -> Object:
    condition = {"type": "Ready", "status": ready}
    if ready == "False":
        condition |= {"reason": "ExitCode1", "message": "Container failed with: no model"}
    annotations = {"internal.serving.kserve.io/storage-initializer-sourceuri": uri or f"v{number}"}
    return {
        "metadata": {
            "name": NAME.format(number),
            "labels": {"serving.knative.dev/configurationGeneration": str(number)},
            "annotations": annotations | {"kserve-local.dev/manifest": "iris.yaml"},
            "creationTimestamp": timestamp(NOW - timedelta(minutes=10 - number)),
        },
        "spec": {"containers": [{"name": "kserve-container"}]},
        "status": {
            "conditions": [condition],
            "desiredReplicas": wanted,
            "actualReplicas": wanted if ready == "True" else 0,
        },
    }


def view(
    *revisions: Object,
    created: int = 0,
    ready: int = 0,
    rolled: int = 0,
    previous: int = 0,
    canary: int | None = None,
    traffic: Split | None = None,
    component: str = "predictor",
    namespace: str = "default",
    gradual: bool = False,
) -> ComponentView:
    named = {
        "latestCreatedRevision": created,
        "latestReadyRevision": ready,
        "latestRolledoutRevision": rolled,
        "previousRolledoutRevision": previous,
    }
    status: dict[str, Any] = {k: NAME.format(n) for k, n in named.items() if n}
    status["traffic"] = [
        {
            "revisionName": NAME.format(n),
            "percent": p,
            "latestRevision": latest,
            **({} if latest else {"tag": "prev"}),
        }
        for n, p, latest in traffic or ()
    ]
    isvc = {
        "metadata": {"name": "iris", "namespace": namespace},
        "spec": {component: {} if canary is None else {"canaryTrafficPercent": canary}},
        "status": {"components": {component: status}},
    }
    routes = {"type": "RoutesReady", "status": "Unknown", "reason": "RolloutInProgress"}
    ksvc = {
        "metadata": {"annotations": {"serving.knative.dev/rollout-duration": "60s"}},
        "status": {"conditions": [routes] if gradual else []},
    }
    return view_of(isvc, component, ksvc if gradual else None, revisions, now=NOW)


FIRST = view(revision(1, "Unknown"), created=1, canary=10)
ONE = view(revision(1), created=1, ready=1, rolled=1, traffic=[(1, 100, True)])
CANARY = view(
    revision(1),
    revision(2),
    created=2,
    ready=2,
    rolled=1,
    canary=10,
    traffic=[(2, 10, True), (1, 90, False)],
)
HELD = view(
    revision(1),
    revision(2),
    created=2,
    ready=2,
    rolled=1,
    canary=0,
    traffic=[(2, 0, True), (1, 100, False)],
)
PROMOTED = view(
    revision(1, wanted=0),
    revision(2),
    created=2,
    ready=2,
    rolled=2,
    previous=1,
    traffic=[(2, 100, True)],
)
PASS_ONE = view(
    revision(1, wanted=0),
    revision(2),
    created=2,
    ready=2,
    rolled=1,
    previous=1,
    canary=0,
    traffic=[(2, 0, True), (2, 100, False)],
)
STARTING = view(
    revision(1),
    revision(2, "Unknown"),
    created=2,
    ready=1,
    rolled=1,
    canary=10,
    traffic=[(1, 10, True), (1, 90, False)],
)
BROKEN = view(
    revision(1),
    revision(2, "False"),
    created=2,
    ready=1,
    rolled=1,
    canary=10,
    traffic=[(1, 10, True), (1, 90, False)],
)
BROKEN_FIRST = view(revision(1, "False"), created=1)
SAME = view(
    revision(1),
    created=1,
    ready=1,
    rolled=1,
    canary=10,
    traffic=[(1, 10, True), (1, 90, False)],
)
GRADUAL = view(
    revision(1),
    revision(2),
    created=2,
    ready=2,
    rolled=1,
    traffic=[(1, 97, True), (2, 3, True)],
    gradual=True,
)


@pytest.mark.parametrize(
    ("found", "phase", "words"),
    [
        (view(), "none", "there is no revision yet"),
        (FIRST, "first", "canaryTrafficPercent 10 has no effect before a first revision"),
        (ONE, "complete", "all traffic goes to 00001"),
        (CANARY, "canary", "10 % of requests go to 00002, the canary; 90 % stay with 00001"),
        (HELD, "held", "00002 gets no requests (0 %) and keeps its replicas; all requests go to "),
        (PROMOTED, "complete", "all traffic goes to 00002"),
        (STARTING, "starting", "00001 serves until it is ready, then it gets 10 %"),
        (BROKEN, "failed", "ExitCode1: Container failed with: no model; 00001 keeps all traffic"),
        (BROKEN_FIRST, "failed", "00001 does not become ready: ExitCode1"),
        (SAME, "one", "canaryTrafficPercent 10 has no effect: both shares are 00001"),
        (GRADUAL, "gradual", "over 60s moves traffic to 00002: 3 % 00002, 97 % 00001"),
    ],
)
def test_the_phases_of_a_rollout(found: ComponentView, phase: str, words: str) -> None:
    assert found.phase == phase
    assert words in meaning(found)
    json.dumps(as_json(found))


@pytest.mark.parametrize(
    ("found", "commands"),
    [
        (
            CANARY,
            ["rollout set-canary iris 50", "rollout promote iris", "rollout undo iris"],
        ),
        (HELD, ["rollout set-canary iris 10", "rollout promote iris"]),
        (PROMOTED, ["rollout undo iris"]),
        (ONE, []),
        (SAME, []),
        (BROKEN, ["logs iris --revision 00002", "status iris"]),
        (STARTING, ["wait iris"]),
        (GRADUAL, ["rollout status iris -w"]),
    ],
)
def test_what_one_may_do_next(found: ComponentView, commands: list[str]) -> None:
    assert [c for c, _ in next_steps(found)] == [f"kserve-local {c}" for c in commands]


def test_commands_name_the_component_and_the_namespace() -> None:
    other = view(
        revision(1),
        revision(2),
        created=2,
        ready=2,
        rolled=1,
        canary=50,
        traffic=[(2, 50, True), (1, 50, False)],
        component="transformer",
        namespace="team",
    )
    assert [c for c, _ in next_steps(other)] == [
        "kserve-local rollout promote iris --component transformer -n team",
        "kserve-local rollout undo iris --component transformer -n team",
    ]


def test_tables_show_roles_and_changes() -> None:
    rows = [line.split(maxsplit=6) for line in status_table(CANARY).splitlines()]
    assert rows == [
        ["REVISION", "TRAFFIC", "TAG", "REPLICAS", "AGE", "STATE", "ROLE"],
        ["iris-predictor-00002", "10%", "-", "1/1", "8m", "Ready", "latest"],
        ["iris-predictor-00001", "90%", "prev", "1/1", "9m", "Ready", "rolled out"],
    ]
    rows = [line.split(maxsplit=5) for line in history_table(PROMOTED).splitlines()]
    assert rows[1] == ["iris-predictor-00002", "8m", "100%", "latest,", "rolled", rows[1][5]]
    assert rows[1][5].split(maxsplit=2) == ["out", "iris.yaml", "storageUri v1 → v2"]
    assert rows[2][2:4] == ["-", "previous"]
    assert "(the one before it is gone)" in history_table(view(revision(7), created=7, ready=7))
    # What has neither traffic nor replicas is history.
    assert NAME.format(1) not in status_table(PROMOTED)


@pytest.mark.parametrize(
    ("found", "action", "value", "rest", "says"),
    [
        (CANARY, "promote", None, "", ""),
        (HELD, "promote", None, "", ""),
        (SAME, "promote", None, "", ""),
        (CANARY, "undo", 0, 1, "stays 0"),
        (PROMOTED, "undo", 0, 1, "in two passes: first both shares are 00002, then "),
        (STARTING, "undo", 0, 1, "00002 was never ready"),
        (BROKEN, "undo", 0, 1, "00002 was never ready"),
        (CANARY, "set-canary", 30, 1, ""),
        (HELD, "set-canary", 30, 1, ""),
        (BROKEN, "set-canary", 30, 1, ""),
        (PROMOTED, "set-canary", 30, 1, "takes this as a rollback"),
        (ONE, "set-canary", 30, "", "the next change of the spec gets 30 %"),
    ],
)
def test_what_an_action_writes(
    found: ComponentView, action: Action, value: int | None, rest: Any, says: str
) -> None:
    step = plan(found, action, 30)
    assert (step.value, step.rest) == (value, NAME.format(rest) if rest else "")
    assert says in " ".join(step.says)


def test_other_changes_make_a_canary_of_what_is_rolled_out() -> None:
    """Edit the model, then set-canary: no rollback, although all traffic had been moved."""
    step = plan(PROMOTED, "set-canary", 30, more=True)
    assert (step.value, step.rest, step.says) == (30, NAME.format(2), ())


@pytest.mark.parametrize(
    ("found", "action", "error", "words"),
    [
        (ONE, "promote", UsageError, "nothing to promote"),
        (PROMOTED, "promote", UsageError, "all traffic goes to 00002"),
        (BROKEN, "promote", ServiceUnavailable, "00002 of .* does not become ready: ExitCode1"),
        (STARTING, "promote", ServiceUnavailable, "not ready yet"),
        (ONE, "undo", UsageError, "no earlier revision that had all traffic"),
        (HELD, "undo", UsageError, "canaryTrafficPercent 0 already, all traffic goes to 00001"),
        (FIRST, "set-canary", ServiceUnavailable, "KServe ignores canaryTrafficPercent"),
        (FIRST, "undo", ServiceUnavailable, "KServe ignores canaryTrafficPercent"),
        (FIRST, "promote", ServiceUnavailable, "KServe ignores canaryTrafficPercent"),
    ],
)
def test_what_cannot_be_done_says_why_and_what_helps(
    found: ComponentView, action: Action, error: type[KServeLocalError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        plan(found, action, 30)
    assert 'InferenceService "default/iris"' in caught.value.message
    assert caught.value.hint.startswith("kserve-local ")


def test_a_previous_revision_that_was_deleted_cannot_come_back() -> None:
    alone = view(revision(2), created=2, ready=2, rolled=2, previous=1, traffic=[(2, 100, True)])
    with pytest.raises(UsageError, match="00001 was deleted"):
        plan(alone, "undo")


def test_an_action_is_done_when_traffic_says_so() -> None:
    back = plan(PROMOTED, "undo")
    assert not is_done(PROMOTED, back)
    assert not is_done(PASS_ONE, back)
    assert is_done(HELD, back)
    done: list[tuple[ComponentView, Step]] = [
        (PROMOTED, Step(None)),
        (CANARY, Step(10, rest=NAME.format(1))),
        (SAME, Step(10)),
        (GRADUAL, Step(None)),
        # The canary is not ready: the last one has both shares.
        (STARTING, Step(10, rest=NAME.format(1))),
    ]
    for found, step in done:
        assert is_done(found, step), (found, step)
    pending: list[Callable[[], bool]] = [
        lambda: is_done(CANARY, Step(None)),
        lambda: is_done(CANARY, Step(50, rest=NAME.format(1))),
        lambda: is_done(HELD, Step(None)),
    ]
    assert not any(check() for check in pending)
