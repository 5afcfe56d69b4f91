"""What `left_out` says, and that it keeps quiet about what works."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.controllers.isvc_gaps import left_out


def service(annotations: dict[str, str] | None = None, **predictor: Any) -> dict[str, Any]:
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": "gs://bucket/model"}
    return {
        "metadata": {"name": "iris", "annotations": annotations or {}},
        "spec": {"predictor": {"model": model, **predictor}},
    }


@pytest.mark.parametrize(
    "isvc",
    [
        service(),
        service(minReplicas=2),
        service(minReplicas=2, maxReplicas=2),
        service(maxReplicas=1, containerConcurrency=1, timeout=5, canaryTrafficPercent=10),
        service(model={"modelFormat": {"name": "huggingface"}}),
    ],
)
def test_nothing_to_say(isvc: dict[str, Any]) -> None:
    assert left_out(isvc) == []


@pytest.mark.parametrize(
    ("isvc", "words"),
    [
        (service(minReplicas=0), "one replica keeps running"),
        (service(maxReplicas=3), "maxReplicas: there is no autoscaler yet"),
        (service(minReplicas=2, scaleTarget=1), "stays at 2"),
        (service(logger={"mode": "all"}), "logger"),
        (service(batcher={"maxBatchSize": 4}), "batcher"),
        (service({"serving.knative.dev/rollout-duration": "60s"}), "at once"),
        (service(model={"modelFormat": {"name": "sklearn"}}), "multi-model"),
    ],
)
def test_what_has_no_effect_is_said(isvc: dict[str, Any], words: str) -> None:
    (sentence,) = left_out(isvc)
    assert words in sentence
