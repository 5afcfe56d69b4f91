"""What crosses from the controllers to the gateway: whole, versioned `RouteTable` snapshots.

One `Route` is one host that the cluster would answer for: an InferenceService's entry, a
component, a tag. Values only; the wire form is the dataclasses as JSON (`orjson` writes them,
`table_from_wire` reads them back). On their way they are `TableChange`s after the first one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

SERVICE_PORT = 80
UNPRIVILEGED_PORT = 61080
"""Where a Service's port 80 is on this machine for those who may not listen on low ports: outside
the ports that systems give to clients, and unlikely to be anybody's on all addresses."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One ready replica. `ports` maps the Pod's port to the one really listened on when they
    differ.

    Args:
        agent: The arguments of the Pod's `agent` container, whose work the gateway does; empty:
            there is none.
        collocated: A transformer and its predictor share the Pod: they talk past the gateway.
    """

    pod: str
    address: str
    port: int
    grpc_port: int = 0
    agent: Sequence[str] = ()
    collocated: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """One revision (or Deployment) that a route sends a share of its requests to.

    Args:
        id: `namespace/revision`, the key of statistics and pokes.
        percent: Weight; the percents of a route's targets add up to 100 (or all are 0).
        endpoints: Ready replicas. Empty: requests are held while `state` is `starting` or `zero`.
        state: `ready`; `starting` (a replica is on its way or restarting); `zero` (scaled to zero,
        poke to wake);
            `failed` (no replica will come without a change; answer at once with `reason`).
        reason: KServe's reason and message, for the body of an answer while `failed`.
        container_concurrency: Hard limit per replica; 0: none.
        timeout: Seconds a request may take until its first byte, and in all.
        graph: Of an InferenceGraph's revision: its spec, services resolved. The gateway itself is
            the router then; `endpoints` only say that it is there.
        propagate: Of a graph: Go regular expressions of the headers that go to its steps.
        plain: Nothing of Knative's stands before the replicas. No request is held: without a
            replica it is refused at once, and what goes wrong is told in Envoy's words.
        direct: The activator is out of the path: each replica queues for itself, and whoever
            chooses one knows nothing of their limits.
    """

    id: str
    percent: int
    endpoints: tuple[Endpoint, ...] = ()
    state: str = "ready"
    reason: str = ""
    container_concurrency: int = 0
    timeout: float = 300.0
    graph: Mapping[str, Any] | None = None
    propagate: tuple[str, ...] = ()
    plain: bool = False
    direct: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """How requests for one name reach replicas.

    Args:
        namespace / service: The InferenceService or InferenceGraph.
        component: `predictor`, `transformer`, `explainer`; `graph`.
        hosts: Exact hosts, lower case, without port: public host, cluster-local names,
            `*.localhost` forms, tags.
        path: Path prefix `/serving/<namespace>/<name>` that is cut off; empty: none.
        models: Model names for plain `http://localhost:8080/v1/models/<m>...` when only one route
            claims them.
        targets: Where to, by weight.
        explain: Where `:explain` of KServe's first protocol goes instead; empty: no difference.
        names_service: Replicas are told the service (headers `KServe-Isvc-*`), as by the cluster's
            rule for the service as a whole; that of a component adds none.
        timeout: Seconds a request may take on this route, whatever its targets say; 0: any time;
            None: what they say.
        explain_timeout: The same for `explain`.
    """

    namespace: str
    service: str
    component: str
    hosts: tuple[str, ...]
    targets: tuple[Target, ...]
    path: str = ""
    models: tuple[str, ...] = ()
    explain: tuple[Target, ...] = ()
    names_service: bool = True
    timeout: float | None = None
    explain_timeout: float | None = None

    def every_target(self) -> tuple[Target, ...]:
        """Return the targets of all its requests."""
        return (*self.targets, *self.explain)


@dataclass(frozen=True, slots=True)
class RouteTable:
    """One consistent view of all routes. `version` only grows within a supervisor's life.

    `listen` maps a Service's own loopback address to the host its requests are for; the gateway
    listens there on port 80, on `UNPRIVILEGED_PORT` where it may not.
    """

    version: int
    routes: tuple[Route, ...] = ()
    listen: Mapping[str, str] | None = None


class RouteSink(Protocol):
    """Takes snapshots for the gateway. The newest wins; publishing never blocks on the gateway."""

    def publish(self, table: RouteTable) -> None: ...


def table_from_wire(data: Mapping[str, Any]) -> RouteTable:
    """Return the table that `orjson.dumps(table)` wrote."""
    return RouteTable(
        version=data["version"],
        listen=data.get("listen"),
        routes=tuple(map(_route_from_wire, data["routes"])),
    )


@dataclass(frozen=True, slots=True)
class TableChange:
    """A table as a change of the one before: of a thousand routes few are new each time.

    Args:
        base: Version of the table before.
        routes: In their order: new routes, and runs `(first, end)` of the table before.
    """

    base: int
    version: int
    routes: tuple[Route | tuple[int, int], ...]
    listen: Mapping[str, str] | None = None


def change_of(before: RouteTable, after: RouteTable) -> TableChange:
    """Return what makes `after` of `before`. A route that is the same object is not sent again."""
    places = {id(route): n for n, route in enumerate(before.routes)}
    found: list[Route | tuple[int, int]] = []
    begin = end = 0  # the run that is being collected
    for route in after.routes:
        place = places.get(id(route))
        if place == end and end > begin:
            end += 1
            continue
        if end > begin:
            found.append((begin, end))
        begin, end = (0, 0) if place is None else (place, place + 1)
        if place is None:
            found.append(route)
    if end > begin:
        found.append((begin, end))
    return TableChange(before.version, after.version, tuple(found), after.listen)


def changed_table(before: RouteTable, data: Mapping[str, Any]) -> RouteTable:
    """Return the table after `orjson.dumps(change)`; unchanged routes are the same objects.

    Raises:
        ValueError: It is a change of another table.
    """
    if data["base"] != before.version:
        raise ValueError(f"a change of table {data['base']}, not of {before.version}")
    routes: list[Route] = []
    for item in data["routes"]:
        if isinstance(item, list):
            routes += before.routes[item[0] : item[1]]
        else:
            routes.append(_route_from_wire(item))
    return RouteTable(data["version"], tuple(routes), data.get("listen"))


def _route_from_wire(data: Mapping[str, Any]) -> Route:
    return Route(
        **{
            **data,
            "hosts": tuple(data["hosts"]),
            "models": tuple(data["models"]),
            "targets": _targets_from_wire(data["targets"]),
            "explain": _targets_from_wire(data.get("explain") or ()),
        }
    )


def _targets_from_wire(data: Sequence[Mapping[str, Any]]) -> tuple[Target, ...]:
    return tuple(
        Target(
            **{
                **t,
                "endpoints": tuple(Endpoint(**e) for e in t["endpoints"]),
                "propagate": tuple(t["propagate"]),
            }
        )
        for t in data
    )
