"""The validating webhooks of InferenceGraph and TrainedModel.

Pure (pkg/apis/serving/v1alpha1/{inference_graph_validation,trainedmodel_webhook}.go;
control-plane.md 9.1, 10). Where upstream walks a Go map in random order, nodes go by name here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kserve_local.api import quantity
from kserve_local.api.meta import Object, name_of
from kserve_local.errors import Forbidden

_GRAPH_NAME = "[a-z]([-a-z0-9]*[a-z0-9])?"
_MODEL_NAME = "^[a-zA-Z0-9_-]+$"
_TARGETS = ("nodeName", "serviceName", "serviceUrl")
_MODEL_PREFIXES = ("s3://", "gs://", "https://", "http://")


def check_graph(obj: Object) -> list[str]:
    """Return the warnings (none) for an InferenceGraph that may be stored.

    Raises:
        Forbidden: The first rule that it breaks.
    """
    graph = name_of(obj)
    if not re.fullmatch(_GRAPH_NAME, graph):
        raise Forbidden(
            f'The InferenceGraph "{graph}" is invalid: a InferenceGraph name must consist of '
            "lower case alphanumeric characters or '-', and must start with alphabetical "
            'character. (e.g. "my-name" or "abc-123", regex used for validation is '
            f"'{_GRAPH_NAME}')"
        )
    nodes: Mapping[str, Any] = (obj.get("spec") or {}).get("nodes") or {}
    if "root" not in nodes:
        raise Forbidden(
            "root node not found, InferenceGraph needs a node with name 'root' as the root node "
            "of the graph"
        )
    for rule in (_check_step_names, _check_targets, _check_weights):
        for name in sorted(nodes):
            rule(graph, name, nodes[name] or {})
    return []


def _steps(node: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return node.get("steps") or ()


def _check_step_names(graph: str, name: str, node: Mapping[str, Any]) -> None:
    seen: set[str] = set()
    for step in _steps(node):
        title = step.get("name") or ""
        if title and title in seen:
            raise Forbidden(
                f'Node "{name}" of InferenceGraph "{graph}" contains more than one step with name '
                f'"{title}"'
            )
        seen.add(title)


def _check_targets(graph: str, name: str, node: Mapping[str, Any]) -> None:
    for index, step in enumerate(_steps(node)):
        count = sum(bool(step.get(target)) for target in _TARGETS)
        if count == 1:
            continue
        problem = (
            "specifies more than one of nodeName, serviceName, serviceUrl"
            if count
            else "does not specify an inference target"
        )
        raise Forbidden(
            f'Step {index} ("{step.get("name") or ""}") in node "{name}" of InferenceGraph '
            f'"{graph}" {problem}'
        )


def _check_weights(graph: str, name: str, node: Mapping[str, Any]) -> None:
    if node.get("routerType") != "Splitter":
        return
    total = 0
    for step in _steps(node):
        if step.get("weight") is None:
            raise Forbidden(
                f"InferenceGraph[{graph}] Node[{name}] Route[{step.get('serviceName') or ''}] "
                "missing the 'Weight'"
            )
        total += int(step["weight"])
    if total != 100:
        raise Forbidden(
            f"InferenceGraph[{graph}] Node[{name}] splitter node: the sum of traffic weights for "
            "all routing targets should be 100"
        )


def check_trained_model(obj: Object, *, old: Object | None) -> list[str]:
    """Return the warnings (none) for a TrainedModel that may be stored.

    Raises:
        Forbidden: The first rule that it breaks.
    """
    name = name_of(obj)
    if not re.fullmatch(_MODEL_NAME, name):
        raise Forbidden(
            f'the Trained Model "{name}" is invalid: a Trained Model name must consist of '
            "alphanumeric characters, '_', or '-'. (e.g. \"my-Name\" or \"abc_123\", regex used "
            f"for validation is '{_MODEL_NAME}')"
        )
    model: Mapping[str, Any] = (obj.get("spec") or {}).get("model") or {}
    uri = str(model.get("storageUri") or "")
    if not uri.startswith(_MODEL_PREFIXES):
        raise Forbidden(
            f'the Trained Model "{name}" storageUri field is invalid. The storage uri must start '
            f"with one of the prefixes: {', '.join(_MODEL_PREFIXES)}. (the storage uri given is "
            f'"{uri}")'
        )
    before = ((old or {}).get("spec") or {}).get("model") or {}
    was, now = before.get("memory"), model.get("memory")
    if old is None or was is None or now is None:
        return []
    if quantity.parse(was) != quantity.parse(now):
        raise Forbidden(
            f'the Trained Model "{name}" memory field is immutable. The memory was "{was}" but it '
            f'is updated to "{now}"'
        )
    return []
