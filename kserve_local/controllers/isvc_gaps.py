"""Which fields of an InferenceService are accepted here and not carried out, in words. Pure.

A field that is ignored says so once, as an Event when the Knative Service is written and in
`kserve-local status`. A line leaves this list when its behaviour comes. Whole components and modes
that are missing are not here: they have conditions of their own (`isvc_status.NOT_AVAILABLE`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kserve_local.api import names
from kserve_local.api.inferenceservice import framework_of, is_multi_model
from kserve_local.api.meta import Object, annotations_of

_SCALING = ("scaleTarget", "scaleMetric", "autoScaling")


def left_out(isvc: Object) -> list[str]:
    """Return one sentence for each field that has no effect, with what happens instead."""
    predictor: Mapping[str, Any] = isvc["spec"]["predictor"]
    said = []
    least = predictor.get("minReplicas")
    most = predictor.get("maxReplicas") or 0
    if least == 0:
        said.append("minReplicas 0: there is no scale to zero yet; one replica keeps running")
    given = [field for field in _SCALING if predictor.get(field) is not None]
    if most > max(1 if least is None else least, 1):
        given.insert(0, "maxReplicas")
    if given:
        running = max(1 if least is None else int(least), 1)
        said.append(
            f"{', '.join(given)}: there is no autoscaler yet; the number of replicas stays at "
            f"{running}"
        )
    if predictor.get("logger"):
        said.append("logger: requests are not logged yet")
    if predictor.get("batcher"):
        said.append("batcher: requests are not put together by an agent yet")
    if annotations_of(isvc).get(names.ROLLOUT_DURATION):
        said.append("rollout-duration: traffic moves to a new revision at once")
    if framework_of(predictor) is not None and is_multi_model(predictor):
        said.append(
            "model without storageUri: a cluster runs it in multi-model mode (agent, TrainedModel),"
            " which is not there; set spec.predictor.model.storageUri"
        )
    return said
