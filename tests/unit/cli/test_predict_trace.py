"""How the hops of a request are shown."""

from __future__ import annotations

from typing import Any

from kserve_local.cli.predict_trace import HEADER, trace_lines, trace_of


def hop(depth: int = 0, start: float = 0.0, ms: float = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "kind": "component", "service": "iris", "component": "predictor",
        "revision": "iris-predictor-00002", "pod": "pod-a", "depth": depth, "start": start,
        "ms": ms, "status": 200, **more,
    }  # fmt: skip


def lines(*hops: dict[str, Any], **more: Any) -> list[str]:
    return trace_lines({"traceId": "ab", "ms": 12.34, "hops": list(hops), **more})


def test_a_hop_a_line_with_what_it_caused_below_it() -> None:
    found = lines(
        hop(component="transformer", revision="iris-transformer-00001", ms=12.3),
        hop(1, 1.25, 10.0, status=502, error="dial tcp 127.64.0.2:8080: connection refused"),
    )
    assert found == [
        "iris transformer 00001  pod-a  +0.0 ms  12.3 ms  200",
        "  iris predictor 00002  pod-a  +1.2 ms  10.0 ms  502: dial tcp 127.64.0.2:8080: "
        "connection refused",
        "12.3 ms in all, trace id ab",
    ]


def test_a_step_is_named_with_its_target() -> None:
    step = {"kind": "service", "depth": 1, "start": 0.0, "ms": 1.0, "status": 200}
    found = lines(
        {**step, "step": "one", "target": "http://x/"}, {**step, "step": "", "target": "svc"}
    )
    assert [line.split("  +")[0].rstrip() for line in found[:2]] == ["  one → http://x/", "  svc"]


def test_what_is_not_sure_says_so() -> None:
    (one, two, three, note, count, _) = lines(
        hop(by="pod", held=100.0),
        hop(by="service", status="NOT_FOUND", error="no model"),
        hop(status=0, open=True),
        leftOut=3,
        unassigned=1,
    )
    assert one.endswith("200 (held 100.0 ms; assumed: the Pod's only request)")
    assert two.endswith("NOT_FOUND: no model (assumed: the service's only request)")
    assert three.endswith("no answer yet")
    assert note == "and 3 more"
    assert count.startswith("1 more call between components: of this request or of another one")


def test_without_a_trace_it_is_said() -> None:
    assert trace_of({}) is None
    assert trace_of({HEADER: "[]"}) is None
    assert trace_of({HEADER: "{"}) is None
    assert trace_of({HEADER: '{"hops":[]}'}) == {"hops": []}
    assert trace_lines(None) == ["no trace: the request reached no service"]
