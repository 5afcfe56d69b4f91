"""The router Pod of an InferenceGraph, which the gateway carries out. Pure.

The objects are a cluster's, down to the Pod; no process or container is started for it. The node
agent shows it as running, and the route of its Revision says what the gateway routes by. Which
Pods that are is said here once, by image and argument, so a router of one's own making still runs
as every other container.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from kserve_local.api.meta import Object, name_of, namespace_of, uid_of
from kserve_local.controllers import pod_state
from kserve_local.controllers.graph_knative import GRAPH_JSON, PROPAGATE_ENV
from kserve_local.controllers.standins import option, repository
from kserve_local.interfaces.backend import ContainerStatus, ReplicaStatus

IMAGE_ID = "kserve-local://gateway"


def routes_by(spec: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]] | None:
    """Return the graph and the header patterns of a Pod's (or Revision's) spec; None: no router.

    As upstream's router, the environment's patterns are split at commas.
    """
    containers: Sequence[Mapping[str, Any]] = spec.get("containers") or ()
    if len(containers) != 1 or spec.get("initContainers"):
        return None
    container = containers[0]
    if repository(str(container.get("image") or "")) != "kserve/router" or container.get("command"):
        return None
    text = option(container.get("args") or (), GRAPH_JSON)
    try:
        graph = json.loads(text or "")
    except ValueError:
        return None
    if not isinstance(graph, dict):
        return None
    for entry in container.get("env") or ():
        if entry.get("name") == PROPAGATE_ENV:
            return graph, tuple(str(entry.get("value") or "").split(","))
    return graph, ()


def stand_in(pod: Object) -> str:
    """Return what stands in for a router Pod's image; empty: nothing of ours does."""
    spec = pod.get("spec") or {}
    if routes_by(spec) is None:
        return ""
    return f"the gateway itself stands in for {pod_state.serving_container(spec)['image']}"


def leave_word(log: Path) -> None:
    """Say in a router's log why nothing else will be in it. A log that cannot be is no harm."""
    with suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(
            "No process runs here: kserve-local's gateway routes this graph's requests. "
            "`kserve-local predict NAME @FILE --trace` shows their steps.\n"
        )


def carried(pod: Object, *, ip: str, now: float) -> ReplicaStatus:
    """Return what a backend would report of a router Pod: it runs since it was first looked at."""
    name = str(pod_state.serving_container(pod["spec"])["name"])
    status = pod_state.container_status(pod, name) or {}
    since = ((status.get("state") or {}).get("running") or {}).get("startedAt")
    started = datetime.fromisoformat(since).timestamp() if since else now
    container = ContainerStatus(
        name, "running", started_at=started, ready=True, started_how="gateway"
    )
    return ReplicaStatus(uid_of(pod), namespace_of(pod), name_of(pod), ip, (container,))
