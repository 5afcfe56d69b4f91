"""Calls within a Pod: from the socket into the trace that they belong to."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from kserve_local.gateway.calls import Calls
from kserve_local.gateway.trace import HTTP_LIMIT
from tests.unit.gateway.test_trace import ASK, World, sent, told, world

__all__ = ["world"]

POD = "iris-transformer-pod"


def call(**fields: Any) -> bytes:
    return json.dumps(
        {
            "pod": POD, "id": "", "target": "localhost:8085", "protocol": "http",
            "call": "POST /v1/models/iris:predict", "began": 0.0, "took": 0.25, "status": 200,
            "error": "", **fields,
        }
    ).encode()  # fmt: skip


def send(path: Path, *datagrams: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        for data in datagrams:
            out.sendto(data, str(path))


async def test_a_call_is_a_hop_of_its_callers(world: World, tmp_path: Path) -> None:
    """Taken before the trace is told, however lately it came."""
    path = tmp_path / "c.sock"
    path.touch()
    calls = Calls(str(path), world.plane.traces)
    send(path, call(id="nobody's"))
    calls.read()
    one, two = world.ask("iris.d", ASK), world.ask("iris.d", ASK)
    id = sent(one)["x-request-id"]
    send(path, b"\xff", b"[]", b"{}", call(id=id, began=one.started + 0.1, status=500, error="x"))
    first, second = told(one)
    assert second == {
        "kind": "within", "pod": POD, "target": "localhost:8085", "protocol": "http",
        "call": "POST /v1/models/iris:predict", "depth": 1, "start": 100.0, "ms": 250.0,
        "status": 500, "error": "x",
    }  # fmt: skip
    assert first["component"] == "transformer"
    assert told(two)[1:] == []
    # Whose it is cannot be told from two.
    send(path, call())
    assert two.hop is not None
    assert json.loads(two.hop.trace.encode(HTTP_LIMIT))["unassigned"] == 1
    world.end(one)
    send(path, call())
    assert told(two)[1]["by"] == "pod"
    calls.close()
    assert not path.exists()


async def test_a_call_of_a_request_that_nobody_traces_is_dropped(
    world: World, tmp_path: Path
) -> None:
    path = tmp_path / "c.sock"
    calls = Calls(str(path), world.plane.traces)
    other = world.ask("iris.d")
    rose = world.ask("rose.d", ASK)
    send(path, call())
    assert told(rose)[1:] == []
    assert other.hop is None
    calls.close()
