"""Which process of an InferenceService a debugger goes to, and why there is none.

A component is served by Pods, a Pod by containers, a container by processes: the first ready Pod,
its container that runs the user's own Python code, and there the process that serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kserve_local.api import names, scheme
from kserve_local.api.meta import (
    Object,
    annotations_of,
    controller_of,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from kserve_local.backends import control
from kserve_local.backends.control import Frame, Interpreter
from kserve_local.controllers import knative_names, pod_state
from kserve_local.errors import NotFound, UsageError
from kserve_local.interfaces import holds
from kserve_local.interfaces.backend import Backend
from kserve_local.store.store import Store

_DEBUGGERS = ("/debugpy/", "/pydevd")


@dataclass(frozen=True, slots=True)
class Target:
    """One process of a Pod.

    Args:
        sockets: Where its container's processes can be asked.
        pid: As its container counts.
        others: Further processes of the container that run the same code.
        source: The folder of the code as the process sees it.
        in_container: It has a file system of its own.
    """

    pod: Object
    container: str
    sockets: Path
    pid: int
    others: tuple[int, ...]
    source: str
    in_container: bool

    @property
    def image(self) -> str:
        """The container's, as the Pod says it."""
        containers = self.pod["spec"]["containers"]
        return next(str(c["image"]) for c in containers if c["name"] == self.container)

    @property
    def name(self) -> str:
        """`namespace/name` of the Pod."""
        return f"{namespace_of(self.pod)}/{name_of(self.pod)}"


async def find(
    store: Store, backend: Backend, namespace: str, service: str, component: str, pid: int | None
) -> Target | None:
    """Return the process to debug; None: the component has no ready Pod.

    Raises:
        UsageError: No process of it runs code of the user's, or not the one named.
    """
    pods = [p for p in pods_of(store, namespace, service, component) if pod_state.is_ready(p)]
    for pod in sorted(pods, key=name_of):
        for container in pod["spec"]["containers"]:
            sockets = await backend.control_sockets(uid_of(pod), container["name"])
            if sockets is None:
                continue
            found = [i for i in await control.describe(sockets) if i.modules]
            if not found:
                continue
            chosen = serving(found) if pid is None else _named(found, pid, name_of(pod))
            others = tuple(i.pid for i in found if i.pid != chosen.pid)
            inside = _is_in_container(pod, container["name"])
            return Target(
                pod, container["name"], sockets, chosen.pid, others, chosen.source, inside
            )
    if not pods:
        return None
    raise UsageError(
        f'{component} of "{service}" runs no Python code of yours: {_what(pods[0])}',
        hint="a custom predictor, transformer or explainer of yours can be debugged",
    )


def _is_in_container(pod: Object, name: str) -> bool:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return any(
        s["name"] == name and not str(s.get("containerID")).startswith("process:") for s in statuses
    )


def _what(pod: Object) -> str:
    """Say what a Pod runs instead of the user's code."""
    first = pod["spec"]["containers"][0]
    if note := annotations_of(pod).get(names.STAND_IN, ""):
        return f"it runs a built-in server ({note})"
    return f'image "{first["image"]}" has no control socket of a Python program'


def _named(found: Sequence[Interpreter], pid: int, pod: str) -> Interpreter:
    for interpreter in found:
        if interpreter.pid == pid:
            return interpreter
    known = ", ".join(str(i.pid) for i in found)
    raise UsageError(f"--pid {pid}: Pod {pod} has no such process; there are: {known}")


def serving(found: Sequence[Interpreter]) -> Interpreter:
    """Return the process that serves: the first one, or the first of its workers. Pure.

    A process that has several children with the same code has handed the work to them; a single
    one is a helper.
    """
    first = min(found, key=lambda i: i.pid)
    workers = [i for i in found if i.parent == first.pid]
    return min(workers, key=lambda i: i.pid) if len(workers) > 1 else first


def pods_of(store: Store, namespace: str, service: str, component: str = "") -> Sequence[Object]:
    """Return the Pods of a service, or of one component of it."""
    labels = {names.ISVC_LABEL: service}
    if component:
        labels[names.COMPONENT_LABEL] = component
    return store.list(scheme.POD.id, namespace=namespace, labels=labels)


def check(store: Store, namespace: str, service: str, component: str) -> None:
    """Make sure that there is such a component.

    Raises:
        NotFound: There is no such service.
        UsageError: It has no such component.
    """
    found = next(
        (
            s
            for s in store.list(scheme.INFERENCE_SERVICE.id, namespace=namespace)
            if name_of(s) == service
        ),
        None,
    )
    if found is None:
        raise NotFound(f'inferenceservices.serving.kserve.io "{service}" not found')
    if not found["spec"].get(component):
        known = [c for c in ("predictor", "transformer", "explainer") if found["spec"].get(c)]
        raise UsageError(f'"{service}" has no {component}; it has: {", ".join(known)}')


def clocks(pod: Object) -> tuple[str, ...]:
    """Return the groups whose clocks stand while the Pod does."""
    namespace, labels = namespace_of(pod), labels_of(pod)
    found = []
    if service := labels.get(knative_names.SERVICE):
        found.append(holds.service_group(namespace, service))
    if owner := controller_of(pod):
        found.append(holds.deployment_group(namespace, str(owner["name"])))
    return tuple(found)


def scaling(pod: Object) -> tuple[str, ...]:
    """Return the groups that keep their scale while a debugger is attached to the Pod."""
    namespace, service = namespace_of(pod), labels_of(pod).get(names.ISVC_LABEL)
    found = [holds.memory_group(f"{namespace}/{service}")] if service else []
    if owner := controller_of(pod):
        found.append(holds.scale_group(namespace, str(owner["name"])))
    return tuple(found)


def where(interpreter: Interpreter) -> Frame | None:
    """Return the user's own call at which a debugger has stopped a process. Pure."""
    for _, frames in interpreter.stacks:
        inner = [f for f in frames if any(part in f.file for part in _DEBUGGERS)]
        mine = [f for f in frames if f.own and not any(part in f.file for part in _DEBUGGERS)]
        if inner and mine:
            return mine[-1]
    return None
