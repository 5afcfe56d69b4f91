"""An InferenceGraph's nodes and every decision of its router. Pure: no I/O, no clock.

`read_graph` takes the JSON that KServe's controller gives the router as `--graph-json`. What is
decided here is upstream's, also where its documentation says otherwise: a step's input is the
node's unless it asks for `$response`; a Sequence's condition is about the answer before; presence
counts, not truth (cmd/router/main.go of v0.20; control-plane.md 9.3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kserve_local.gateway import gjson, gojson

ROOT = "root"
NO_ROUTE = "None of the routes matched with the switch condition"
NOT_PICKED = "no route was selected by the splitter"
INVALID = "invalid response"

_PASSWORD = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.\-]*://[^/?#@:]*):[^/?#]*@")

SERVER_READ, SERVER_WRITE, SERVER_IDLE = 60.0, 60.0, 180.0


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a node; `node` or `url` is where it goes."""

    name: str = ""
    node: str = ""
    service: str = ""
    url: str = ""
    data: str = ""
    maps: bool = False
    weight: int = 0
    condition: str = ""
    hard: bool = False

    @property
    def target(self) -> str:
        """What to call the step's target where people read it."""
        return self.node or self.service or without_password(self.url)


@dataclass(frozen=True, slots=True)
class Node:
    """A router: `Sequence`, `Switch`, `Splitter`, `Ensemble`; everything else is an error later."""

    kind: str = ""
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Graph:
    """The whole graph.

    Args:
        propagate: Go regular expressions of header names that go to every step.
        client: Seconds that one call of a step may take; 0: no limit.
        read / write / idle: The router's server limits, in seconds; 0: none.
    """

    nodes: Mapping[str, Node]
    propagate: tuple[str, ...] = ()
    client: float = 0.0
    read: float = SERVER_READ
    write: float = SERVER_WRITE
    idle: float = SERVER_IDLE


class GraphError(Exception):
    """The router's own failure: `{"error": "Failed to process request", "cause": text}`."""

    def __init__(self, cause: str, status: int = 500) -> None:
        super().__init__(cause)
        self.status = status


def read_graph(spec: Mapping[str, Any], propagate: Sequence[str] = ()) -> Graph:
    """Return the graph of an InferenceGraph's spec whose services are resolved to URLs."""
    limits = spec.get("routerTimeouts") or {}

    def seconds(field: str, default: float) -> float:
        value = limits.get(field)
        return max(0.0, float(default if value is None else value))

    return Graph(
        nodes={name: _node(node or {}) for name, node in (spec.get("nodes") or {}).items()},
        propagate=tuple(propagate),
        client=seconds("serviceClient", 0.0),
        read=seconds("serverRead", SERVER_READ),
        write=seconds("serverWrite", SERVER_WRITE),
        idle=seconds("serverIdle", SERVER_IDLE),
    )


def _node(node: Mapping[str, Any]) -> Node:
    steps = tuple(
        Step(
            name=step.get("name") or "",
            node=step.get("nodeName") or "",
            service=step.get("serviceName") or "",
            url=step.get("serviceUrl") or "",
            data=step.get("data") or "",
            maps=bool(step.get("mapPredictionsToInstances")),
            weight=int(step.get("weight") or 0),
            condition=step.get("condition") or "",
            hard=step.get("dependency") == "Hard",
        )
        for step in node.get("steps") or ()
    )
    return Node(str(node.get("routerType") or ""), steps)


def without_password(url: str) -> str:
    """Return a URL for people's eyes."""
    return _PASSWORD.sub(r"\1:***@", url, count=1)


def is_success(status: int) -> bool:
    """Whether a step's status satisfies a hard dependency."""
    return 200 <= status <= 299


def pick_by_weight(steps: Sequence[Step], point: int) -> Step:
    """Return the step on whose share of 100 the draw `point` (0 to 99) falls.

    Raises:
        GraphError: None: the weights add up to less.
    """
    end = 0
    for step in steps:
        end += step.weight
        if point < end:
            return step
    raise GraphError(NOT_PICKED)


def pick_by_condition(steps: Sequence[Step], body: bytes) -> Step:
    """Return the first step whose condition leads to anything in the request.

    Raises:
        GraphError: None does, or the request is no JSON.
    """
    if gjson.is_valid(body):
        for step in steps:
            if _leads(body, step):
                return step
    raise GraphError(NO_ROUTE, 404)


def goes_on(step: Step, answer: bytes) -> bool:
    """Whether a Sequence goes on with `step` after `answer`, the one of the step before.

    Raises:
        GraphError: That is no JSON; before the first step there is none at all.
    """
    if not step.condition:
        return True
    if not gjson.is_valid(answer):
        raise GraphError(INVALID)
    return _leads(answer, step)


def _leads(document: bytes, step: Step) -> bool:
    try:
        return gjson.exists(document, step.condition)
    except gjson.PathTooCostly as error:
        raise GraphError(f'condition "{step.condition}" of step "{step.name}": {error}') from error


def step_input(step: Step, index: int, given: bytes, answer: bytes) -> bytes:
    """Return the body that a Sequence's step number `index` gets.

    Args:
        given: What the node got.
        answer: What the step before answered.
    """
    body = answer if step.data == "$response" and index else given
    return map_predictions(body) if step.maps else body


def map_predictions(body: bytes) -> bytes:
    """Return `{"instances": <predictions>}` for a body with predictions; else the body itself."""
    try:
        found = gojson.decode_object(body) or {}
    except gojson.GoJSONError:
        return body
    # As Go's decoder: names in any case, the last one wins, and both have to be lists.
    fields: dict[str, Any] = {}
    for key, value in found.items():
        name = key.lower()
        if name in ("predictions", "instances"):
            if value is not None and not isinstance(value, list):
                return body
            fields[name] = value
    return (
        gojson.encode({"instances": fields["predictions"]}) if fields.get("predictions") else body
    )


def merged(answers: Mapping[str, Any]) -> bytes:
    """Return an Ensemble's result: the steps' objects by name."""
    return gojson.encode(dict(answers))


def error_body(error: GraphError) -> bytes:
    """Return the body of the router's own failure, as Go writes it: fields in their order."""
    cause = gojson.encode(str(error)).decode()
    return f'{{"error":"Failed to process request","cause":{cause}}}'.encode()


def content_type(body: bytes) -> bytes:
    """Return what the router says a body is: JSON, or what Go's sniffing finds; empty: nothing."""
    if gjson.is_valid(body):
        return b"application/json"
    if not body:
        return b""
    start = body[:512].lstrip(b"\t\n\x0c\r ")
    low = start[:16].lower()
    if low.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<p>", b"<!--")):
        return b"text/html; charset=utf-8"
    if start.startswith(b"<?xml"):
        return b"text/xml; charset=utf-8"
    if any(c < 0x09 or c == 0x0B or 0x0E <= c <= 0x1A or 0x1C <= c <= 0x1F for c in start):
        return b"application/octet-stream"
    return b"text/plain; charset=utf-8"
