"""How Pods are reached and which models they have, as the gateway is told. Pure.

Shared by the routes of Knative and of Standard mode.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kserve_local.api import names
from kserve_local.api.meta import Object, annotations_of, name_of
from kserve_local.controllers import pod_state
from kserve_local.controllers.agent_injector import agent_args
from kserve_local.interfaces.routing import Endpoint


def model_names(isvc: Object, specs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the model names that plain `/v1/models/<name>` may mean: those the server was given.

    `--model_name` (ours and KServe's servers), MLSERVER_MODEL_NAME, else the service's name.

    Args:
        specs: The newest PodSpec of the component that takes requests, if there is one.
    """
    if not specs:
        return (name_of(isvc),)
    container = pod_state.serving_container(specs[0])
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    for at, word in enumerate(words):
        for flag in ("--model_name", "--model-name", "--served-model-name"):
            if word.startswith(f"{flag}="):
                return (word.partition("=")[2],)
            if word == flag and at + 1 < len(words):
                return (words[at + 1],)
    for entry in container.get("env") or ():
        if entry.get("name") == "MLSERVER_MODEL_NAME" and entry.get("value"):
            return (entry["value"],)
    return (name_of(isvc),)


def address_of(pod: Object) -> str:
    """Return the Pod's address; the node's where Pods have none of their own."""
    status = pod.get("status") or {}
    return str(status.get("podIP") or status.get("hostIP") or "")


def endpoint_of(pod: Object) -> Endpoint:
    """Return how to reach a ready Pod: the serving container's port, and its gRPC port."""
    container = pod_state.serving_container(pod["spec"])
    real = _real_ports(pod)
    port = pod_state.serving_port(container)
    # Without an address of its own a Pod has the ports only that it names.
    grpc = _named_grpc_port(container) or (0 if real else _told_grpc_port(container))
    return Endpoint(
        pod=name_of(pod),
        address=address_of(pod),
        port=real.get(port, port),
        grpc_port=real.get(grpc, grpc),
        agent=agent_args(pod),
        collocated={names.PREDICTOR_CONTAINER, names.TRANSFORMER_CONTAINER}
        <= {c.get("name") for c in pod["spec"]["containers"]},
    )


def endpoints_of(pods: Sequence[Object]) -> tuple[Endpoint, ...]:
    """Return the Pods that take requests, in the order of their names."""
    return tuple(
        endpoint_of(pod)
        for pod in sorted(pods, key=name_of)
        if pod_state.is_ready(pod) and address_of(pod)
    )


def _named_grpc_port(container: Mapping[str, Any]) -> int:
    """Return the port that is named as gRPC's, 0 without; a cluster reaches no other."""
    for port in container.get("ports") or ():
        if str(port.get("name", "")).startswith(("grpc", "h2c")):
            return int(port["containerPort"])
    return 0


def _told_grpc_port(container: Mapping[str, Any]) -> int:
    """Return where a server was told to serve gRPC, else KServe's default."""
    words = [str(w) for w in (*(container.get("command") or ()), *(container.get("args") or ()))]
    for n, word in enumerate(words):
        flag, _, value = word.partition("=")
        if flag in _GRPC_FLAGS:
            value = value or (words[n + 1] if n + 1 < len(words) else "")
            if value.isdigit():
                return int(value)
    for entry in container.get("env") or ():
        value = str(entry.get("value") or "")
        if entry.get("name") == "MLSERVER_GRPC_PORT" and value.isdigit():
            return int(value)
    return DEFAULT_GRPC_PORT


_GRPC_FLAGS = frozenset(("--grpc_port", "--grpc-port"))
DEFAULT_GRPC_PORT = 8081


def _real_ports(pod: Object) -> dict[int, int]:
    text = annotations_of(pod).get(names.PORTS)
    if not text:
        return {}
    return {int(k): int(v) for k, v in json.loads(text).items()}


def reason_text(info: Mapping[str, Any]) -> str:
    """Return reason and message of a condition or failure as one text."""
    return ": ".join(filter(None, (str(info.get("reason", "")), str(info.get("message", "")))))
