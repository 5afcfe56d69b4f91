"""What the commands of `rollout` say about a component: sentences, tables, JSON. Pure."""

from __future__ import annotations

from typing import Any

from kserve_local.cli.output import table
from kserve_local.cli.rollout_view import FIELD, ComponentView, RevisionView, can_go_back


def meaning(view: ComponentView) -> str:
    """Return in a sentence or two what the state means."""
    latest, kept = number_of(view.ready), number_of(view.rolled_out)
    newest = view.revision(view.created)
    match view.phase:
        case "none":
            return "there is no revision yet"
        case "first":
            return (
                f"the first revision, {number_of(view.created)}, is starting and gets all traffic "
                f"when it is ready{_ignored(view)}"
            )
        case "starting":
            return (
                f"{number_of(view.created)} is starting; {latest} serves until it is ready, "
                f"{_then(view)}"
            )
        case "failed":
            why = f": {newest.message}" if newest and newest.message else ""
            serving = f"; {latest} keeps all traffic" if view.ready else _ignored(view)
            return f"{number_of(view.created)} does not become ready{why}{serving}"
        case "gradual":
            shares = ", ".join(f"{r.percent} % {r.number}" for r in view.routed)
            return f"a gradual rollout over {view.duration} moves traffic to {latest}: {shares}"
        case "canary":
            return (
                f"{view.canary} % of requests go to {latest}, the canary; "
                f"{100 - int(view.canary or 0)} % stay with {kept}"
            )
        case "held":
            return (
                f"{latest} gets no requests (0 %) and keeps its replicas; all requests go to "
                f"{kept}, which had them last"
            )
        case "one":
            return (
                f"{FIELD} {view.canary} has no effect: both shares are {latest}, for no other "
                "revision had all the traffic before; the next change of the spec is a canary"
            )
        case _:
            return f"all traffic goes to {latest}"


def _ignored(view: ComponentView) -> str:
    if view.canary is None or view.rolled_out:
        return ""
    return f"; {FIELD} {view.canary} has no effect before a first revision had all traffic"


def _then(view: ComponentView) -> str:
    if view.canary is None or view.canary >= 100 or not view.rolled_out:
        return "then all traffic moves to it"
    return f"then it gets {view.canary} %"


def next_steps(view: ComponentView) -> list[tuple[str, str]]:
    """Return (command, what it does) of what one would do next, the likeliest first."""
    name = view.service
    where = f" -n {view.namespace}" if view.namespace != "default" else ""
    of = "" if view.component == "predictor" else f" --component {view.component}"

    def rollout(what: str, more: str = "") -> str:
        return f"kserve-local rollout {what} {name}{more}{of}{where}"

    latest, kept = number_of(view.ready), number_of(view.rolled_out)
    match view.phase:
        case "canary":
            half = (rollout("set-canary", " 50"), f"half of it to {latest}")
            return [
                *([half] if int(view.canary or 0) < 50 else []),
                (rollout("promote"), f"all of it to {latest}"),
                (rollout("undo"), f"all of it back to {kept}"),
            ]
        case "held":
            return [
                (rollout("set-canary", " 10"), f"10 % to {latest}"),
                (rollout("promote"), f"all of it to {latest}"),
            ]
        case "gradual":
            return [(rollout("status", " -w"), "watch it")]
        case "first" | "starting" | "none":
            return [(f"kserve-local wait {name}{where}", "until it is ready")]
        case "failed":
            logs = f"kserve-local logs {name} --revision {number_of(view.created)}{where}"
            return [(logs, "why"), (f"kserve-local status {name}{where}", "the whole message")]
        case "complete" if can_go_back(view):
            return [(rollout("undo"), f"all of it back to {number_of(view.previous)}")]
        case _:
            return []


def number_of(revision: str) -> str:
    """Return the end of a Revision's name, `00002`."""
    return revision.rpartition("-")[2] or "none"


# --- as text and as JSON ---------------------------------------------------------------------


def status_table(view: ComponentView) -> str:
    """Return the Revisions that matter now: with traffic or replicas, and the newest."""
    from kserve_local.apiserver.durations import human

    shown = [
        r for r in view.revisions if r.percent is not None or r.wanted or r.name == view.created
    ]
    rows = [
        (
            r.name,
            _percent(r),
            ",".join(r.tags) or "-",
            f"{r.replicas}/{r.wanted}",
            human(r.age),
            r.state,
            ", ".join(r.roles) or "kept",
        )
        for r in shown
    ]
    header = ("REVISION", "TRAFFIC", "TAG", "REPLICAS", "AGE", "STATE", "ROLE")
    return table(rows, header) if rows else ""


def history_table(view: ComponentView) -> str:
    """Return all Revisions that are kept, newest first, with what each changed."""
    from kserve_local.apiserver.durations import human

    rows = [
        (
            r.name,
            human(r.age),
            _percent(r),
            ", ".join(r.roles) or "kept",
            r.manifest or "-",
            _changes(r),
        )
        for r in view.revisions
    ]
    header = ("REVISION", "AGE", "TRAFFIC", "ROLE", "FILE", "CHANGES")
    return table(rows, header) if rows else ""


def _percent(revision: RevisionView) -> str:
    return "-" if revision.percent is None else f"{revision.percent}%"


def _changes(revision: RevisionView) -> str:
    if revision.changes is None:
        return "-" if int(revision.number) == 1 else "(the one before it is gone)"
    return ", ".join(revision.changes) or "nothing that is shown here"


def as_json(view: ComponentView) -> dict[str, Any]:
    """Return the component's entry of `--json`."""
    return {
        "component": view.component,
        "phase": view.phase,
        "meaning": meaning(view),
        FIELD: view.canary,
        "latestCreatedRevision": view.created,
        "latestReadyRevision": view.ready,
        "latestRolledoutRevision": view.rolled_out,
        "previousRolledoutRevision": view.previous,
        "rolloutDuration": view.duration,
        "revisions": [
            {
                "name": r.name,
                "percent": r.percent,
                "tags": list(r.tags),
                "replicas": r.replicas,
                "wanted": r.wanted,
                "ageSeconds": round(r.age),
                "state": r.state,
                "message": r.message,
                "roles": list(r.roles),
                "changes": None if r.changes is None else list(r.changes),
                "manifest": r.manifest,
            }
            for r in view.revisions
        ],
        "next": [command for command, _ in next_steps(view)],
    }
