"""Following services until they are Ready or have failed: lines for people, NDJSON for programs.

Reads watches of the API; the words for a state are KServe's conditions and model states.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from kserve_local.api import scheme
from kserve_local.api.meta import (
    Object,
    condition_is,
    labels_of,
    name_of,
    namespace_of,
)
from kserve_local.api.names import COMPONENT_LABEL, GRAPH_LABEL, ISVC_LABEL, REVISION_LABEL
from kserve_local.api.pods import preparation
from kserve_local.cli.component_states import revision_of_interest, states_of
from kserve_local.cli.output import Output
from kserve_local.cli.views import View, is_graph, view
from kserve_local.client.client import Client
from kserve_local.client.project import OBSERVED
from kserve_local.errors import KServeLocalError, NotFound

EMPTY_MODEL = "EmptyModel"
"""Reason of the Event about a service whose server finds no model (controllers/empty_models.py)."""
REFUSED = frozenset({"CreateContainerConfigError", "CreateContainerError", "InvalidImageName"})
"""Why a container is not even tried. The service's model status names it, still InProgress."""
# A runtime that has just changed, or a Pod replaced, still shows the old revision's status, and a
# service of an earlier run its last failure; this much quiet settles it.
SETTLE = 0.3
SETTLE_FAILED = 1.5
LOOK = 0.5
"""Seconds between two looks at what became of the specs, while nothing else is ready to settle."""

Name = tuple[str, str]


def labelled(names: Collection[Name]) -> dict[Name, str]:
    """Return what each service is called in a line: its name, with the namespace where two share
    it.
    """
    counts = Counter(name for _, name in names)
    return {n: f"{n[0]}/{n[1]}" if counts[n[1]] > 1 else n[1] for n in names}


@dataclass
class Reporter:
    """Prints what happens, once each, as lines or as NDJSON.

    Args:
        events: False keeps `--json` to the one envelope at the end.
        failures: What is told of a service that fails: `whole`; `short`, for who tells why in the
            end; `not`, for who tells of nothing else.
        labels: What services are called where that is not their name.
        lines: Log lines shown so far, per service.
    """

    out: Output
    events: bool = True
    failures: Literal["whole", "short", "not"] = "whole"
    sequence: int = 0
    labels: Mapping[Name, str] = field(default_factory=dict)
    lines: dict[Name, int] = field(default_factory=dict)

    def label(self, name: Name) -> str:
        """Return what a service is called in a line."""
        return self.labels.get(name, name[1])

    def emit(self, type_: str, **fields: Any) -> None:
        """Write one NDJSON event (`--json` only)."""
        if self.out.as_json and self.events:
            self.sequence += 1
            line = {"type": type_, "ts": round(time.time(), 3), "seq": self.sequence, **fields}
            self.out.data(json.dumps(line, ensure_ascii=False))

    def state(self, name: Name, seen: View, seconds: float) -> None:
        """Tell of a service's new state."""
        marks = {"Ready": "✓", "Failed": "✗", "Stopped": "○"}
        self.emit(
            "state", namespace=name[0], name=name[1], state=seen.state, reason=seen.reason,
            message=seen.message,
        )  # fmt: skip
        if not self.out.as_json and not (seen.state == "Failed" and self.failures == "not"):
            self.out.step(marks.get(seen.state, "●"), self.label(name), seen.text, seconds)
            if seen.state == "Failed" and self.failures == "whole":
                for line in seen.message.splitlines():
                    self.out.say(f"      {line}")

    def note(self, name: Name, text: str) -> None:
        """Tell what keeps a service waiting."""
        self.emit("problem", namespace=name[0], name=name[1], message=text)
        if not self.out.as_json:
            for line in text.splitlines():
                self.out.say(f"      {self.label(name)}: {line}")

    def log(self, name: Name, line: str) -> None:
        """Pass on one line of a container's output."""
        self.lines[name] = self.lines.get(name, 0) + 1
        self.emit("log", namespace=name[0], name=name[1], line=line)
        if not self.out.as_json:
            self.out.say(f"      {self.label(name)} │ {line}")


@dataclass
class Follower:
    """Follows a set of services.

    Args:
        names: (namespace, name) of the services to wait for.
        changed: Those with something besides their spec just changed: a status that moves
            does not count yet. (Of a spec the supervisor tells when its status is there.)
        revived: Those that were there before: a failure they show may be an old one, which neither
            counts nor is told before they were tried again.
    """

    client: Client
    reporter: Reporter
    names: Collection[Name]
    changed: Collection[Name] = ()
    revived: Collection[Name] = ()
    views: dict[Name, View] = field(default_factory=dict)
    objects: dict[Name, Object] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _touched: dict[Name, float] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.reporter.labels = labelled(self.names)

    async def until_settled(self, patience: float) -> str:
        """Wait until every service is Ready or Failed; return `ready`, `failed` or `timeout`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience), self._following():
                while not self._settled():
                    await self._news_within(SETTLE / 3)
                    self._news.clear()
                    await self._look()
        for name in sorted(self._held):
            self._show(name, final=True)
        return self.outcome()

    async def for_ever(self) -> None:
        """Tell of changes until cancelled or the server goes away."""
        async with self._following():
            while True:
                await self._news_within(LOOK)
                self._news.clear()
                await self._look()

    async def _news_within(self, seconds: float) -> None:
        """Wait for news. Not by `wait_for`: with Python 3.11 it swallows a Ctrl-C that comes just
        then, and whoever pressed it waits for ever.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    def outcome(self) -> str:
        """Return `ready`, `failed` or `timeout` for what was seen so far."""
        states = {self.views[n].state if n in self.views else "" for n in self.names}
        if states <= {"Ready", "Stopped"}:
            running = [n for n in self.names if self.views[n].state == "Ready"]
            return "ready" if all(map(self._serves, running)) else "timeout"
        return "failed" if "Failed" in states else "timeout"

    async def log_tail(self, name: Name) -> list[str]:
        """Return the end of a failed service's log; empty if its spec never became a Pod."""
        if name in self._troubled or name not in self.objects:
            return []
        return await log_tail(self.client, self.objects[name])

    def _settled(self) -> bool:
        return all(map(self._is_settled, self.names))

    def _is_settled(self, name: Name) -> bool:
        seen = self.views.get(name)
        if seen is None:
            return False
        quiet = time.monotonic() - self._touched[name]
        if not self._is_current(name) or (name in self.changed and quiet < SETTLE):
            return False
        if seen.state == "Failed":
            return self._counts(name)
        return seen.state == "Stopped" or (seen.state == "Ready" and self._serves(name))

    def _counts(self, name: Name) -> bool:
        """Whether a failure that is shown is one of now: it was tried again, or nobody tries."""
        if name not in self.revived or self._tried.get(name):
            return True
        quiet = time.monotonic() - self._touched[name]
        return quiet > SETTLE_FAILED and not self._trying.get(name)

    def _is_current(self, name: Name) -> bool:
        """Whether the status seen is that of the spec there is now."""
        metadata, seen = self.objects[name]["metadata"], self._observed.get(name) or {}
        return (
            seen.get("uid") == metadata.get("uid")
            and seen["settled"]
            and seen["generation"] >= int(metadata.get("generation") or 0)
            # The answer may overtake the watch.
            and int(metadata["resourceVersion"]) >= int(seen["resourceVersion"])
        )

    async def _look(self) -> None:
        """Ask what became of the specs, at once if that is all that is missing."""
        final = all(self._seems.get(name, "Loading") != "Loading" for name in self.names)
        if not final and time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        answer = await self.client.call("GET", OBSERVED)
        for seen in answer["services"]:
            name = (str(seen["namespace"]), str(seen["name"]))
            if name not in self.names:
                continue
            before = self._observed.get(name) or {}
            self._observed[name] = seen
            if not seen["message"] or not seen["settled"]:
                self._troubled.pop(name, None)
            elif before.get("generation") != seen["generation"] or name not in self._troubled:
                self._troubled[name] = self._looked
            if name in self.objects:
                self._show(name)

    def _serves(self, name: Name) -> bool:
        """Whether a Pod of each component is there; right after a start a service's status may be
        yesterday's.
        """
        ready = self._ready_pods.get(name) or {}
        zero = (self._observed.get(name) or {}).get("zero", ())
        if is_graph(self.objects[name]):
            return "graph" in zero or bool(ready)
        return all(
            part.component in ready.values() or part.component in zero
            for part in states_of(self.objects[name])
        )

    @asynccontextmanager
    async def _following(self) -> AsyncIterator[None]:
        """Watch services and their Pods' output while the block is open."""
        pods, version = await self.client.list_at(scheme.POD)
        for pod in pods:
            self._saw_pod(pod, there=True)
        async with asyncio.TaskGroup() as tasks:
            # What one that serves said long ago is no news.
            self._begin_tails((p for p in pods if not condition_is(p, "Ready")), tasks, last=10)
            self._begin_tails(pods, tasks, last=0)
            watching = [
                tasks.create_task(self._services(scheme.INFERENCE_SERVICE), name="watch-services"),
                tasks.create_task(self._services(scheme.INFERENCE_GRAPH), name="watch-graphs"),
                tasks.create_task(self._pods(tasks, version), name="watch-pods"),
                tasks.create_task(self._events(), name="watch-events"),
            ]
            try:
                yield
            finally:
                for task in (*watching, *self._tails):
                    task.cancel()

    _tails: list[asyncio.Task[None]] = field(default_factory=list)
    _ready_pods: dict[Name, dict[str, str]] = field(default_factory=dict)
    _tried: dict[Name, bool] = field(default_factory=dict)
    _trying: dict[Name, bool] = field(default_factory=dict)
    # Kubernetes writes whole seconds.
    _begun: int = field(default_factory=lambda: int(time.time()))
    _preparing: dict[Name, str] = field(default_factory=dict)
    _refused: dict[Name, bool] = field(default_factory=dict)
    _seems: dict[Name, str] = field(default_factory=dict)
    _observed: dict[Name, dict[str, Any]] = field(default_factory=dict)
    _troubled: dict[Name, float] = field(default_factory=dict)
    _looked: float = 0.0
    _held: set[Name] = field(default_factory=set)
    _waiting: dict[str, Name] = field(default_factory=dict)
    _said: dict[Name, set[tuple[str, str, str]]] = field(default_factory=dict)
    _told: set[tuple[str, str]] = field(default_factory=set)
    _followed: set[tuple[str, str, int]] = field(default_factory=set)

    async def _services(self, kind: scheme.ResourceType) -> None:
        async with aclosing(self.client.watch(kind)) as events:
            async for event in events:
                if event.type in ("ADDED", "MODIFIED"):
                    self._saw(event.object)
                elif event.type == "DELETED":
                    self.views.pop((namespace_of(event.object), name_of(event.object)), None)

    def _saw(self, isvc: Object) -> None:
        name = (namespace_of(isvc), name_of(isvc))
        if name not in self.names:
            return
        self.objects[name] = isvc
        self._touched[name] = time.monotonic()
        self._show(name)
        self._news.set()

    def _show(self, name: Name, *, final: bool = False) -> None:
        """Work out the service's view anew and tell of it if it changed.

        Args:
            final: Nobody looks again, so a failure that may be an old one is told, too.
        """
        seen = view(self.objects[name])
        if seen.state == "Ready" and not self._serves(name):
            seen = View("Loading", "starting")
        if seen.state == "Loading" and self._preparing.get(name):
            seen = View("Loading", self._preparing[name], seen.reason, seen.message)
        seen = self._refusal(name, seen)
        self._seems[name] = seen.state
        seen = self._trouble(name, seen)
        before = self.views.get(name)
        if seen.state == "Ready" and not self._is_current(name):
            # The revision before still serves; of the new spec there is nothing to tell yet.
            if before is None or before.state != "Ready":
                self.views[name] = View("Loading", "")
            return
        self.views[name] = seen
        if seen.state == "Failed" and not (final or self._counts(name)):
            self._held.add(name)
            return
        was_held = name in self._held
        self._held.discard(name)
        unchanged = before is not None and (before.state, before.text) == (seen.state, seen.text)
        if unchanged and not was_held:
            return
        told = self._said.setdefault(name, set())
        if seen.state == "Ready":
            told.clear()
        elif before is not None and (seen.state, seen.text, seen.message) in told:
            return  # The same round again: a container that fails is restarted and fails.
        told.add((seen.state, seen.text, seen.message))
        self.reporter.state(name, seen, time.monotonic() - self._started)

    async def _events(self) -> None:
        async with aclosing(self.client.watch(scheme.EVENT)) as events:
            async for event in events:
                if event.type in ("ADDED", "MODIFIED"):
                    self._saw_event(event.object)

    def _saw_event(self, event: Object) -> None:
        """Tell once why a Pod that runs is not ready yet, or Ready with nothing to serve: its log
        need not.
        """
        about = event.get("involvedObject") or {}
        service = (str(about.get("namespace", "")), str(about.get("name", "")))
        if event.get("reason") == EMPTY_MODEL and service in self.names:
            at = event.get("lastTimestamp")
            if at and datetime.fromisoformat(at).timestamp() >= self._begun:
                self.reporter.note(service, str(event.get("message", "")))
            return
        pod = str(about.get("uid", ""))
        if event.get("reason") != "Unhealthy" or pod not in self._waiting:
            return
        message = str(event.get("message", ""))
        if (pod, message) not in self._told:
            self._told.add((pod, message))
            self.reporter.note(self._waiting[pod], message)

    def _trouble(self, name: Name, seen: View) -> View:
        """Return the failure of a spec that cannot be carried out, once it lasts: it is retried.

        It counts beside a revision that serves, too: that one is not what was asked for.
        """
        since = self._troubled.get(name)
        waits = self._observed.get(name) or {}
        if seen.state == "Loading" and waits.get("message") and not waits["settled"]:
            return View("Loading", waits["message"], waits["reason"], waits["message"])
        if since is None or seen.state in ("Failed", "Stopped"):
            return seen
        if time.monotonic() - since < SETTLE_FAILED:
            return View("Loading", "trying") if seen.state == "Ready" else seen
        found = self._observed[name]
        return View("Failed", found["reason"], found["reason"], found["message"])

    def _refusal(self, name: Name, seen: View) -> View:
        """Return the failure of a service whose Pod cannot be made as it is written."""
        model = (self.objects[name].get("status") or {}).get("modelStatus") or {}
        failure = model.get("lastFailureInfo") or {}
        if seen.state != "Loading" or not failure or not self._refused.get(name):
            return seen
        reason = str(failure.get("reason", ""))
        return View("Failed", reason, reason, str(failure.get("message", "")))

    async def _pods(self, tasks: asyncio.TaskGroup, version: int) -> None:
        async with aclosing(self.client.watch(scheme.POD, since=version)) as events:
            async for event in events:
                there = event.type in ("ADDED", "MODIFIED")
                name = self._saw_pod(event.object, there=there)
                if name in self.objects:
                    self._saw(self.objects[name])
                if there:
                    self._begin_tails([event.object], tasks)

    def _saw_pod(self, pod: Object, *, there: bool) -> Name:
        name = (namespace_of(pod), service_of(pod))
        there = there and not pod["metadata"].get("deletionTimestamp")
        ready = self._ready_pods.setdefault(name, {})
        if there and condition_is(pod, "Ready"):
            ready[name_of(pod)] = labels_of(pod).get(COMPONENT_LABEL, "")
        else:
            ready.pop(name_of(pod), None)
        if there and _has_failed(pod, self._begun):
            self._tried[name] = True
        self._trying[name] = there and not condition_is(pod, "Ready") and _runs(pod)
        if there and name in self.names and not condition_is(pod, "Ready"):
            self._waiting[str(pod["metadata"]["uid"])] = name
        else:
            self._waiting.pop(str(pod["metadata"]["uid"]), None)
        self._preparing[name] = preparation(pod) if there else ""
        self._refused[name] = there and _is_refused(pod)
        return name

    def _begin_tails(
        self, pods: Iterable[Object], tasks: asyncio.TaskGroup, last: int | None = None
    ) -> None:
        """Pass on the output of containers that have begun to run, from the `last` lines on."""
        for pod in pods:
            if (namespace_of(pod), service_of(pod)) not in self.names:
                continue
            status = pod.get("status") or {}
            inits = status.get("initContainerStatuses") or ()
            for container in (*inits, *(status.get("containerStatuses") or ())):
                run = (str(pod["metadata"]["uid"]), str(container["name"]),
                       int(container.get("restartCount", 0)))  # fmt: skip
                if run not in self._followed and (container.get("state") or {}).get("running"):
                    self._followed.add(run)
                    work = self._tail(pod, run, last)
                    self._tails.append(tasks.create_task(work, name=f"logs-{name_of(pod)}"))

    async def _tail(self, pod: Object, run: tuple[str, str, int], last: int | None) -> None:
        service, rest = (namespace_of(pod), service_of(pod)), b""
        try:
            lines = self.client.logs(
                name_of(pod), namespace_of(pod), container=run[1], follow=True, tail=last
            )
            async with aclosing(lines) as chunks:
                async for chunk in chunks:
                    *whole, rest = (rest + chunk).split(b"\n")
                    for line in whole:
                        self.reporter.log(service, line.decode(errors="replace"))
        except KServeLocalError:
            self._followed.discard(
                run
            )  # Its log was not there yet; the Pod's next news tries again.


async def waits_for(client: Client, name: Name) -> str:
    """Return what a service that is on its way, or has failed, waits for in one line; else "".

    Raises:
        NotFound: There is no such service.
    """
    from kserve_local.cli.status import told

    try:
        isvc = await client.get(scheme.INFERENCE_SERVICE, name[1], name[0])
    except NotFound:
        isvc = await client.get(scheme.INFERENCE_GRAPH, name[1], name[0])
    seen = view(isvc)
    label = GRAPH_LABEL if is_graph(isvc) else ISVC_LABEL
    pods = await client.list(scheme.POD, namespace=name[0], labels=f"{label}={name[1]}")
    if any(condition_is(pod, "Ready") for pod in pods):
        return seen.text if seen.state == "Loading" else ""
    if seen.state == "Failed":
        return f"{told(seen.reason, seen.message) or seen.text}; it is tried again"
    if seen.state == "Ready":
        seen = View("Loading", "starting")
    preparing = next(filter(None, map(preparation, pods)), "")
    return (preparing or seen.text) if seen.state == "Loading" else ""


def service_of(pod: Object) -> str:
    """Return the InferenceService or InferenceGraph that a Pod belongs to; empty: none."""
    labels = pod["metadata"].get("labels") or {}
    return str(labels.get(ISVC_LABEL) or labels.get(GRAPH_LABEL) or "")


async def log_tail(client: Client, isvc: Object, lines: int = 10) -> list[str]:
    """Return the last lines of the newest container, of the newest revision, that said anything."""
    name = (namespace_of(isvc), name_of(isvc))
    labels, revision = f"{ISVC_LABEL}={name[1]}", revision_of_interest(isvc)
    if revision:
        labels += f",{REVISION_LABEL}={revision}"
    own = await client.list(scheme.POD, namespace=name[0], labels=labels)
    own.sort(key=lambda p: str(p["metadata"].get("creationTimestamp", "")), reverse=True)
    for pod in own:
        spec = pod.get("spec") or {}
        for container in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
            for previous in (False, True):
                found = b""
                with suppress(KServeLocalError):
                    chunks = client.logs(
                        name_of(pod), name[0], container=str(container["name"]), tail=lines,
                        previous=previous,
                    )  # fmt: skip
                    async with aclosing(chunks) as stream:
                        async for chunk in stream:
                            found += chunk
                if found.strip():
                    return found.decode(errors="replace").splitlines()[-lines:]
    return []


def _is_refused(pod: Object) -> bool:
    status = pod.get("status") or {}
    containers = (status.get("initContainerStatuses"), status.get("containerStatuses"))
    states = [c.get("state") or {} for found in containers for c in found or ()]
    return any((s.get("waiting") or {}).get("reason") in REFUSED for s in states)


_LOST = "ContainerStatusUnknown"
"""The reason of an end that nobody saw: the container was not there any more. Has no start."""


def _has_failed(pod: Object, since: int) -> bool:
    """Whether a container of the Pod that started at `since` or later has ended with an error.

    One that died with its supervisor, or while there was none, says nothing of the next try.
    """
    for container in _containers(pod):
        for when in ("state", "lastState"):
            ended = (container.get(when) or {}).get("terminated") or {}
            started = ended.get("startedAt")
            if ended.get("reason") == _LOST:
                continue
            if ended.get("exitCode") and (
                not started or datetime.fromisoformat(started).timestamp() >= since
            ):
                return True
    return False


def _runs(pod: Object) -> bool:
    return any((container.get("state") or {}).get("running") for container in _containers(pod))


def _containers(pod: Object) -> list[dict[str, Any]]:
    status = pod.get("status") or {}
    keys = ("initContainerStatuses", "containerStatuses")
    return [container for key in keys for container in status.get(key) or ()]


def base_url(gateway: str) -> str:
    """Return the gateway's URL as people write it."""
    port = gateway.rpartition(":")[2]
    return f"http://localhost:{port}" if "127.0.0.1" in gateway else gateway


def urls(gateway: str, isvc: Object) -> Mapping[str, str]:
    """Return the ways to call a service: plain (in the protocol its spec names), path, host."""
    name, namespace = name_of(isvc), namespace_of(isvc)
    if is_graph(isvc):
        return _graph_urls(gateway, isvc)
    port = gateway.rpartition(":")[2]
    base = base_url(gateway)
    host = str((isvc.get("status") or {}).get("url", "")).removeprefix("http://")
    model = ((isvc.get("spec") or {}).get("predictor") or {}).get("model") or {}
    is_v2 = str(model.get("protocolVersion") or "").endswith("v2")
    call = f"v2/models/{name}/infer" if is_v2 else f"v1/models/{name}:predict"
    return {
        "path": f"{base}/serving/{namespace}/{name}",
        "predict": f"{base}/serving/{namespace}/{name}/{call}",
        "rest": f"{base}/{call}",
        "host": host,
        "localhost": f"{name}.{namespace}.localhost:{port}",
    }


def _graph_urls(gateway: str, graph: Object) -> Mapping[str, str]:
    """Return the ways to call a graph: one address, whatever the path behind it."""
    name, namespace = name_of(graph), namespace_of(graph)
    path = f"{base_url(gateway)}/serving/{namespace}/{name}"
    return {
        "path": path,
        "predict": path,
        "rest": path,
        "host": str((graph.get("status") or {}).get("url", "")).removeprefix("http://"),
        "localhost": f"{name}.{namespace}.localhost:{gateway.rpartition(':')[2]}",
    }
