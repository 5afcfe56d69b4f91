"""The service that a rollout command is about, read from the API, with its Knative half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kserve_local.api import names, scheme
from kserve_local.api.inferenceservice import COMPONENTS
from kserve_local.api.meta import Object, annotations_of, labels_of, name_of, namespace_of
from kserve_local.cli import rollout_words as words
from kserve_local.cli.rollout_view import ComponentView, view_of
from kserve_local.cli.session import near, service_name
from kserve_local.client.client import Client
from kserve_local.errors import NotFound, ServiceUnavailable, UsageError


@dataclass(frozen=True, slots=True)
class Found:
    """A service and its rollouts."""

    isvc: Object
    views: Sequence[ComponentView]

    def as_json(self) -> dict[str, Any]:
        return {
            "namespace": namespace_of(self.isvc),
            "name": name_of(self.isvc),
            "components": [words.as_json(view) for view in self.views],
        }


async def look(client: Client, namespace: str, name: str, component: str | None) -> Found:
    """Return the service and the rollouts of its components.

    Raises:
        NotFound: There is no such service, or it has no such component.
        UsageError: It does not run in Knative mode.
    """
    name = service_name(name)
    isvc = await client.find(scheme.INFERENCE_SERVICE, name, namespace)
    if isvc is None:
        raise await _nobody(client, namespace, name)
    who = f'InferenceService "{namespace}/{name}"'
    mode = (isvc.get("status") or {}).get("deploymentMode") or names.LEGACY_MODES.get(
        asked := annotations_of(isvc).get(names.DEPLOYMENT_MODE, ""), asked
    )
    if mode and mode != names.KNATIVE_MODE:
        way = "; its canaries are entries of spec.canary" if mode == names.STANDARD_MODE else ""
        raise UsageError(
            f"{who} runs in {mode} mode, where canaryTrafficPercent has no effect{way}",
            hint=f"kserve-local get isvc {name} -o yaml",
        )
    there = [c for c in COMPONENTS if isvc["spec"].get(c) is not None]
    if component and component not in there:
        raise NotFound(f"{who} has no {component}; it has: {', '.join(there)}")
    if annotations_of(isvc).get(names.STOP, "").lower() == "true":
        raise ServiceUnavailable(
            f"{who} is stopped and has no revisions",
            hint=f"take the annotation {names.STOP} out to start it again",
        )
    labels = f"{names.ISVC_LABEL}={name}"
    services = await client.list(scheme.KNATIVE_SERVICE, namespace=namespace, labels=labels)
    revisions = await client.list(scheme.REVISION, namespace=namespace, labels=labels)
    now = datetime.now(UTC)
    views = []
    for one in [component] if component else there:
        own = [s for s in services if labels_of(s).get(names.COMPONENT_LABEL) == one]
        ksvc = own[0] if own else None
        of = ksvc["metadata"]["name"] if ksvc else ""
        kept = [
            r for r in revisions
            if labels_of(r).get(f"{names.KNATIVE_GROUP}/service") == of
            and namespace_of(r) == namespace
        ]  # fmt: skip
        views.append(view_of(isvc, one, ksvc, kept, now=now))
    return Found(isvc, views)


async def _nobody(client: Client, namespace: str, name: str) -> NotFound:
    if await client.find(scheme.INFERENCE_GRAPH, name, namespace) is not None:
        return NotFound(
            f'"{name}" is an InferenceGraph, which has no canary: a new revision gets all traffic'
        )
    known = [name_of(o) for o in await client.list(scheme.INFERENCE_SERVICE, namespace=namespace)]
    guess = near(name, known)
    hint = f'did you mean "{guess}"?' if guess else f"services here: {', '.join(known) or 'none'}"
    return NotFound(f'inferenceservices.serving.kserve.io "{name}" not found', hint=hint)
