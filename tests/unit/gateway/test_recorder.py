"""The bounds of what is kept: by number, by bytes, of all services, and of calls that still run."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kserve_local.gateway import recorder as module
from kserve_local.gateway.proxy import Exchange
from kserve_local.gateway.recorder import BODY_LIMIT, BURST, RATE, RUNNING, Recorder
from kserve_local.gateway.table import CompiledRoute
from kserve_local.interfaces.routing import Route


def compiled(service: str = "iris", component: str = "predictor") -> CompiledRoute:
    return CompiledRoute(Route("default", service, component, (), ()))


@dataclass
class Call:
    """What the recorder reads of an exchange."""

    route: CompiledRoute
    fresh: bytes = b"POST / HTTP/1.1\r\n\r\n"
    path: bytes = b"/v1/models/iris:predict"
    method: bytes = b"POST"
    replays: bool = False
    status: int = 200
    said: Any = b"HTTP/1.1 200 OK\r\n\r\n{}"
    sent: Any = None
    pending: list[bytes] = field(default_factory=list)
    answer: Any = None
    rpc: bool = False
    started: float = 0.0
    body_done: bool = True

    @property
    def head(self) -> Any:
        return SimpleNamespace(
            target=self.path, method=self.method, replays=self.replays, ring_route=None
        )

    target = SimpleNamespace(spec=SimpleNamespace(id="default/iris-predictor-00001"))
    client = SimpleNamespace(protocol="HTTP/1.1")


def take(recorder: Recorder, call: Call) -> None:
    recorder.take(cast("Exchange", call), 1.0)


def fresh(recorder: Recorder, **which: str) -> list[bytes]:
    return [entry.fresh for _, entry in recorder.entries(**which)]


def test_the_newest_stay_by_number() -> None:
    recorder, route = Recorder(3, 1 << 20), compiled()
    for n in range(5):
        take(recorder, Call(route, fresh=b"%d" % n))
    assert fresh(recorder) == [b"2", b"3", b"4"]


def test_the_newest_stay_by_bytes() -> None:
    recorder, route = Recorder(100, 10_000), compiled()
    for n in range(20):
        take(recorder, Call(route, fresh=b"%02d" % n + b"x" * 1500))
    assert [f[:2] for f in fresh(recorder)] == [b"16", b"17", b"18", b"19"]
    assert recorder.size <= 10_000
    take(recorder, Call(route, fresh=b"x" * 20_000))
    assert (fresh(recorder), recorder.size) == ([], 0)


def test_a_busy_service_does_not_take_the_place_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All together are bounded; who holds most gives."""
    monkeypatch.setattr(module, "TOTAL", 160_000)
    monkeypatch.setattr(module, "_ROOM", 10_000)
    recorder = Recorder(100, 1 << 20)
    quiet, busy = compiled("quiet"), compiled("busy")
    take(recorder, Call(quiet, fresh=b"q" * 5000))
    for _ in range(90):
        take(recorder, Call(busy, fresh=b"b" * 5000))
        assert recorder.size <= 160_000
    assert fresh(recorder, service="quiet") == [b"q" * 5000]
    assert 20 < len(fresh(recorder, service="busy")) < 30


def test_smaller_limits_hold_for_what_is_there() -> None:
    recorder, route = Recorder(10, 1 << 20), compiled()
    for n in range(10):
        take(recorder, Call(route, fresh=b"%d" % n))
    recorder.limit(2, 1 << 20)
    assert fresh(recorder) == [b"8", b"9"]


def test_of_many_calls_a_sample_is_kept_and_the_newest() -> None:
    recorder, route = Recorder(10_000, 64 << 20), compiled()
    for n in range(1000):
        take(recorder, Call(route, fresh=b"%d" % n))
    assert len(recorder._rings[("default", "iris", "predictor")].entries) == BURST
    # Asked for before the clock ticks, the newest is there, too.
    assert fresh(recorder)[-1] == b"999"
    recorder.tick(10.0)
    for n in range(1000, 2000):
        take(recorder, Call(route, fresh=b"%d" % n))
    recorder.tick(10.05)
    found = fresh(recorder)
    assert found[-1] == b"1999"
    assert len(found) == 2 * BURST + 2
    for n in range(2000, 2100):
        take(recorder, Call(route, fresh=b"%d" % n))
    assert len(fresh(recorder)) == len(found) + int(0.05 * RATE) + 1


@pytest.mark.parametrize(
    "other",
    [
        {"method": b"GET"},
        {"replays": True},
        {"rpc": True},
        {"status": 101},
        {"path": b"/v1/models/iris"},
        {"path": b"/v2/models/iris/ready"},
        {"path": b"/v1/models"},
        {"path": b"/metrics?x=/v1/models/iris:predict"},
    ],
)
def test_what_is_no_call_of_a_model_is_not_kept(other: dict[str, Any]) -> None:
    recorder = Recorder(10, 1 << 20)
    take(recorder, Call(compiled(), **other))
    assert fresh(recorder) == []


def test_a_graph_takes_calls_at_any_path() -> None:
    recorder = Recorder(10, 1 << 20)
    take(recorder, Call(compiled("g", "graph"), path=b"/"))
    assert len(fresh(recorder, component="graph")) == 1


def test_a_larger_body_holds_nothing() -> None:
    recorder = Recorder(10, 1 << 20)
    body = recorder.pieces()
    for _ in range(5):
        body.take([b"x" * (BODY_LIMIT // 4)])
    assert (body.cut, body.pieces, body.size) == (True, [], BODY_LIMIT // 4 * 5)
    assert recorder.running == 0


def test_running_calls_hold_no_more_than_their_share() -> None:
    recorder, route = Recorder(1000, 64 << 20), compiled()
    piece = b"x" * BODY_LIMIT
    bodies = [recorder.pieces([piece]) for _ in range(100)]
    assert recorder.running == RUNNING
    assert sum(not body.cut for body in bodies) == RUNNING // BODY_LIMIT
    for body in bodies:
        take(recorder, Call(route, sent=body))
    assert recorder.running == 0
    assert not recorder.pieces([piece]).cut
