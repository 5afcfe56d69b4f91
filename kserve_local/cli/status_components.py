"""The components of a service in the table of `status`: lines of their own below the service's.

A service that is only a predictor has none. The others have them with `-o wide`, and wherever a
component is not what it should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_FINE = ("Ready", "Zero", "Stopped")


def with_components(services: Sequence[dict[str, Any]], *, wide: bool) -> list[dict[str, Any]]:
    """Return what gets a line: each service, and its components where they are told apart.

    A component's entry has the keys of a service's that a line needs, and `label`.
    """
    found = []
    for service in services:
        parts = service.get("components", ())
        several = len(parts) > 1
        apart = several and (wide or any(p["state"] not in _FINE for p in parts))
        found.append({**service, "apart": apart})
        if apart:
            found += [_line(service, part) for part in parts]
    return found


def _line(service: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    pods = {pod for revision in part["revisions"] for pod in revision["pods"]}
    return {
        **part,
        "label": f"  {part['component']}",
        "component": "",
        "namespace": service["namespace"],
        "gpus": [gpu for gpu in service.get("gpus", ()) if gpu["pod"] in pods],
    }


def revisions_of(service: dict[str, Any]) -> str:
    """Return the revisions that take requests: `00002 10% · 00001 90%`, by component if several.

    Standard mode has Deployments in their place: `predictor 75% · v2-predictor 25%`.
    """
    if service.get("apart"):
        return "-"
    shown = [r for r in service["revisions"] if r["percent"] or r["replicas"]]
    by_component: dict[str, list[str]] = {}
    for revision in shown:
        text = f"{_short(service['name'], revision['name'])} {revision['percent']}%"
        by_component.setdefault(revision.get("component", ""), []).append(text)
    if len(by_component) < 2:
        return " · ".join(text for texts in by_component.values() for text in texts) or "-"
    return ", ".join(f"{name} {' · '.join(texts)}" for name, texts in by_component.items())


def _short(service: str, revision: str) -> str:
    number = revision.rpartition("-")[2]
    return number if number.isdecimal() else revision.removeprefix(f"{service}-")
