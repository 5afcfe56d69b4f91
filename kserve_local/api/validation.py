"""The validating webhooks: what a cluster refuses after the schema has accepted it.

Pure. `validate` runs the webhook of the object's kind on create and update, `validate_deletion` on
delete; texts are KServe's and Knative's, wrapped as the API server wraps them. The rules live in
one module a kind: `validation_isvc`, `validation_autoscaling`, `validation_canary`,
`validation_runtime`, `validation_graph`, `validation_local_model`, `validation_llm`,
`validation_knative`, `autoscaler_config` (control-plane.md 2.5, 3.3, 9.1, 10; llm.md 1.4, 5.5;
traffic.md 1.8, 1.9).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kserve_local.api import (
    autoscaler_config,
    validation_graph,
    validation_isvc,
    validation_knative,
    validation_llm,
    validation_local_model,
    validation_runtime,
)
from kserve_local.api.config import InferenceServiceConfig
from kserve_local.api.field_errors import FieldErrors
from kserve_local.api.meta import Object
from kserve_local.errors import Forbidden, Invalid

Lookup = Callable[[str, str | None], Sequence[Object]]


@dataclass(frozen=True, slots=True)
class Review:
    """What one webhook call is about.

    Args:
        old: The stored object on update, None on create.
        lookup: Gives the existing objects of a resource in a namespace (None: all).
    """

    obj: Object
    old: Object | None
    config: InferenceServiceConfig
    lookup: Lookup


def validate(
    obj: Object, *, old: Object | None, config: InferenceServiceConfig, lookup: Lookup
) -> list[str]:
    """Return the warnings of the kind's validating webhook.

    Args:
        obj: The object as it would be stored, defaulted and pruned.
        old: What is stored, on update.

    Raises:
        Forbidden: `admission webhook "<name>" denied the request: <message>`.
        Invalid: The same, from webhooks that answer with field errors; one cause per field.
    """
    webhook = _WEBHOOKS.get(_kind(obj))
    if webhook is None:
        return []
    if old is not None and obj["metadata"].get("deletionTimestamp"):
        return []  # an object on its way out is not looked at any more
    name, check = webhook
    return _reviewed(name, check, Review(obj, old, config, lookup), obj)


def validate_deletion(obj: Object, *, config: InferenceServiceConfig, lookup: Lookup) -> list[str]:
    """Return the warnings of the kind's webhook on DELETE; most kinds have none.

    Raises:
        Forbidden: Something still uses the object, or it has to stay.
    """
    webhook = _DELETION_WEBHOOKS.get(_kind(obj))
    if webhook is None:
        return []
    name, check = webhook
    return _reviewed(name, check, Review(obj, None, config, lookup), obj)


def _reviewed(
    name: str, check: Callable[[Review], list[str]], review: Review, obj: Object
) -> list[str]:
    # LLM webhooks exist once a version.
    name = name.format(version=str(obj["apiVersion"]).rpartition("/")[2])
    try:
        return check(review)
    except FieldErrors as error:
        message = f'admission webhook "{name}" denied the request: {error.message_for(obj)}'
        raise Invalid(message, causes=error.causes) from error
    except Forbidden as error:
        message = f'admission webhook "{name}" denied the request: {error}'
        raise Forbidden(message) from error


def _kind(obj: Object) -> tuple[str, str]:
    return str(obj.get("apiVersion", "")).rpartition("/")[0], str(obj.get("kind"))


def _isvc(review: Review) -> list[str]:
    return validation_isvc.check(review.obj, old=review.old, config=review.config)


def _runtime(review: Review) -> list[str]:
    return validation_runtime.check(review.obj, config=review.config, lookup=review.lookup)


def _graph(review: Review) -> list[str]:
    return validation_graph.check_graph(review.obj)


def _trained_model(review: Review) -> list[str]:
    return validation_graph.check_trained_model(review.obj, old=review.old)


def _llm(review: Review) -> list[str]:
    return validation_llm.check(review.obj, old=review.old)


def _llm_config(review: Review) -> list[str]:
    return validation_llm.check_config(review.obj, old=review.old)


def _llm_config_deletion(review: Review) -> list[str]:
    return validation_llm.check_config_deletion(review.obj)


def _cache(review: Review) -> list[str]:
    return validation_local_model.check(review.obj, lookup=review.lookup)


def _cache_deletion(review: Review) -> list[str]:
    return validation_local_model.check_deletion(review.obj, lookup=review.lookup)


def _knative(review: Review) -> list[str]:
    return validation_knative.check(review.obj, lookup=review.lookup)


def _cluster_config(review: Review) -> list[str]:
    return autoscaler_config.check(review.obj)


_Webhook = tuple[str, Callable[[Review], list[str]]]
_SERVER = "kserve-webhook-server"
_KSERVE: tuple[tuple[str, str, Callable[[Review], list[str]]], ...] = (
    ("InferenceService", f"inferenceservice.{_SERVER}.validator", _isvc),
    ("ServingRuntime", f"servingruntime.{_SERVER}.validator", _runtime),
    ("ClusterServingRuntime", f"clusterservingruntime.{_SERVER}.validator", _runtime),
    ("InferenceGraph", f"inferencegraph.{_SERVER}.validator", _graph),
    ("TrainedModel", f"trainedmodel.{_SERVER}.validator", _trained_model),
    ("LocalModelCache", f"localmodelcache.{_SERVER}.validator", _cache),
    ("LocalModelNamespaceCache", f"localmodelnamespacecache.{_SERVER}.validator", _cache),
    ("LLMInferenceService", f"llminferenceservice.{_SERVER}.{{version}}.validator", _llm),
    (
        "LLMInferenceServiceConfig",
        f"llminferenceserviceconfig.{_SERVER}.{{version}}.validator",
        _llm_config,
    ),
)
_WEBHOOKS: dict[tuple[str, str], _Webhook] = {
    ("", "ConfigMap"): ("config.webhook.serving.knative.dev", _cluster_config),
    ("serving.knative.dev", "Service"): ("validation.webhook.serving.knative.dev", _knative),
    **{("serving.kserve.io", kind): (name, check) for kind, name, check in _KSERVE},
}
_DELETION_WEBHOOKS: dict[tuple[str, str], _Webhook] = {
    ("serving.kserve.io", "LocalModelCache"): (
        f"localmodelcache.{_SERVER}.validator",
        _cache_deletion,
    ),
    ("serving.kserve.io", "LocalModelNamespaceCache"): (
        f"localmodelnamespacecache.{_SERVER}.validator",
        _cache_deletion,
    ),
    ("serving.kserve.io", "LLMInferenceServiceConfig"): (
        f"llminferenceserviceconfig.{_SERVER}.{{version}}.validator",
        _llm_config_deletion,
    ),
}
