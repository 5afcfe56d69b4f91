"""`predict --trace`: the hops that a request took, as the gateway tells them, in a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

HEADER = "x-kserve-local-trace"
"""Asks the gateway for the trace of a request; the answer's header says it."""

_ASSUMED = {
    "pod": "assumed: the Pod's only request",
    "service": "assumed: the service's only request",
}


def trace_of(headers: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the trace that an answer brought; None: it reached no service."""
    try:
        found = json.loads(headers.get(HEADER, ""))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def trace_lines(trace: Mapping[str, Any] | None) -> list[str]:
    """Return one line a hop: what, in which Pod, from when, how long, and what became of it."""
    if trace is None:
        return ["no trace: the request reached no service"]
    rows = [
        (
            "  " * hop["depth"] + _name(hop),
            hop.get("pod", ""),
            f"+{hop['start']:.1f} ms",
            f"{hop['ms']:.1f} ms",
            _result(hop),
        )
        for hop in trace["hops"]
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
    lines = [
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}  {e}".rstrip()
        for a, b, c, d, e in rows
    ]
    if (unseen := _unseen(trace["hops"])) and not trace.get("leftOut"):
        lines.append(f"what the containers of {unseen} ask each other does not pass the gateway")
    if trace.get("leftOut"):
        lines.append(f"and {trace['leftOut']} more")
    if count := trace.get("unassigned"):
        lines.append(
            f"{count} more call{'' if count == 1 else 's'} between components: of this request or "
            "of another one, as neither traceparent nor x-request-id was passed on"
        )
    return [*lines, f"{trace['ms']:.1f} ms in all, trace id {trace['traceId']}"]


def _name(hop: Mapping[str, Any]) -> str:
    if hop["kind"] == "within":
        return f"{hop['target']} in the Pod"
    if hop["kind"] == "component":
        revision = str(hop.get("revision", "")).rpartition("-")[2]
        return " ".join(filter(None, (hop["service"], hop["component"], revision)))
    step = hop.get("step") or hop.get("target", "")
    return str(step if step == hop.get("target") else f"{step} → {hop['target']}")


def _unseen(hops: Sequence[Mapping[str, Any]]) -> str:
    """Return a Pod of several containers of which no call within is known; empty: there is none."""
    told = {hop.get("pod") for hop in hops if hop["kind"] == "within"}
    pods = (str(hop["pod"]) for hop in hops if hop.get("collocated"))
    return next((pod for pod in pods if pod not in told), "")


def _result(hop: Mapping[str, Any]) -> str:
    error = hop.get("error", "")
    if hop["status"]:
        text = f"{hop['status']}: {error}" if error else str(hop["status"])
    else:
        text = error or ("no answer yet" if hop.get("open") else "no answer")
    notes = [f"held {hop['held']:.1f} ms"] if hop.get("held") else []
    notes += [_ASSUMED[hop["by"]]] if hop.get("by") in _ASSUMED else []
    return f"{text} ({'; '.join(notes)})" if notes else text
