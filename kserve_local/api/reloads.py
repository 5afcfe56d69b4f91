"""Annotations of a Pod template that ask for new Pods and change nothing else. Pure.

Where a save cannot be taken over by a running Pod, the Deployment rolls to new Pods as it does for
every change of its template: a new one comes up, an old one goes. What differs in the template is
an annotation alone (`kserve-local.dev/code`, `.../model`), and no Revision's spec has it; whoever
writes a Deployment anew therefore keeps it. Another value replaces the Pods once more, also those
of the value before that do not come up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kserve_local.api.meta import Object
from kserve_local.api.names import CODE, MODEL

RELOADS = (CODE, MODEL)


def digest_on(deployment: Object, annotation: str) -> str:
    """Return what a Deployment's Pods are started for, empty if no save asked for any."""
    return _annotations(deployment["spec"]).get(annotation, "")


def merge_patch(annotation: str, digest: str) -> dict[str, Any]:
    """Return the merge patch of a Deployment that asks for new Pods."""
    return {"spec": {"template": {"metadata": {"annotations": {annotation: digest}}}}}


def with_digest(deployment: Object, annotation: str, digest: str) -> Object:
    """Return a Deployment that asks for new Pods, or itself if it does so already."""
    if digest_on(deployment, annotation) == digest:
        return deployment
    return {**deployment, "spec": _annotated(deployment["spec"], {annotation: digest})}


def kept(existing: Object, spec: dict[str, Any]) -> dict[str, Any]:
    """Return the spec to write over an existing Deployment's, with what saves asked for in it."""
    asked = {k: v for k, v in _annotations(existing["spec"]).items() if k in RELOADS}
    return _annotated(spec, asked) if asked else spec


def template_without(deployment: Object) -> dict[str, Any]:
    """Return a Deployment's template as if no save had ever asked for new Pods.

    Without annotations it has no such field, whether or not it had an empty one.
    """
    template: dict[str, Any] = deployment["spec"]["template"]
    before = _annotations(deployment["spec"])
    metadata = {k: v for k, v in (template.get("metadata") or {}).items() if k != "annotations"}
    if rest := {k: v for k, v in before.items() if k not in RELOADS}:
        metadata["annotations"] = rest
    return {**template, "metadata": metadata}


def _annotations(spec: Mapping[str, Any]) -> Mapping[str, str]:
    metadata = (spec.get("template") or {}).get("metadata") or {}
    return metadata.get("annotations") or {}


def _annotated(spec: Mapping[str, Any], more: Mapping[str, str]) -> dict[str, Any]:
    template = spec["template"]
    metadata = template.get("metadata") or {}
    annotations = {**(metadata.get("annotations") or {}), **more}
    return {**spec, "template": {**template, "metadata": {**metadata, "annotations": annotations}}}
