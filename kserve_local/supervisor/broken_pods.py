"""New Pods that do not come up beside the ones that serve: what a save broke, for `status`.

Reads a service's Pods and the logs of those that fail. Says file, line and error where the log has
a traceback, else what the Pod says. Blocking: reads the ends of log files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kserve_local.api import names
from kserve_local.api.headlines import NEXT_STEP, headline
from kserve_local.api.meta import (
    Object,
    annotations_of,
    controller_of,
    get_condition,
    labels_of,
    name_of,
)
from kserve_local.api.tracebacks import Place, traceback_of
from kserve_local.controllers import pod_state
from kserve_local.settings import Settings
from kserve_local.supervisor.statedir import MODELS

_TAIL = 64 << 10
_WHAT = {names.CODE: "code", names.MODEL: "model"}


@dataclass(frozen=True, slots=True)
class Broken:
    """A new Pod that fails.

    Args:
        what: `code` or `model`: what it was started for.
        serving: The Pod that serves on.
        place: Where the code failed; None: nobody says.
        message: What became of it otherwise, in one line.
    """

    component: str
    pod: str
    serving: str
    what: str
    place: Place | None
    message: str

    @property
    def error(self) -> str:
        """What went wrong, in one line."""
        return self.place.told() if self.place is not None else self.message

    def told(self) -> str:
        """Return the warning."""
        return (
            f"the new {self.what} does not start: {self.error}; Pod {self.serving} serves the "
            f"{self.what} of before"
        )

    def shown(self) -> dict[str, Any]:
        """Return it as JSON; `file` is empty and `line` 0 where nobody says."""
        return {
            "component": self.component,
            "pod": self.pod,
            "serving": self.serving,
            "what": self.what,
            "file": self.place.file if self.place else "",
            "line": self.place.line if self.place else 0,
            "error": self.place.error if self.place else self.message,
        }


def broken(pods: Sequence[Object], settings: Settings) -> list[Broken]:
    """Return the Pods of a service that a save started and that fail while older ones serve."""
    live = [p for p in pods if not pod_state.is_terminating(p)]
    found: dict[tuple[str, str, str], Broken] = {}
    for pod in pod_state.newest_first(live):
        container = None if pod_state.is_ready(pod) else _failing(pod)
        before = [p for p in live if pod_state.is_ready(p) and _reloads(p, pod)]
        if container is None or not before:
            continue
        name, failure = container
        place = traceback_of(_log(settings.log_dir / name_of(pod), name), settings.project)
        serving = pod_state.newest_first(before)[0]
        what = _WHAT[_reloads(serving, pod)[0]]
        if what == "model" and place is not None and Path(place.file).is_absolute():
            place = None  # where a server found out that a file is damaged helps nobody
        one = Broken(
            component=labels_of(pod).get(names.COMPONENT_LABEL, ""),
            pod=name_of(pod),
            serving=name_of(serving),
            what=what,
            place=place,
            message=_readable(failure, settings.state),
        )
        # Several replicas fail alike.
        found.setdefault((one.component, one.what, one.error), one)
    return list(found.values())


def last_asked_for(pods: Sequence[Object]) -> list[Object]:
    """Return a service's Pods without those that others are to take the place of."""
    live = [p for p in pods if not pod_state.is_terminating(p)]
    return [
        pod
        for pod in live
        if not any(_reloads(pod, other) and _created(other) >= _created(pod) for other in live)
    ]


def _created(pod: Object) -> str:
    return str(pod["metadata"].get("creationTimestamp") or "")


def _reloads(old: Object, new: Object) -> list[str]:
    """Return what differs between two Pods of one Deployment that a save asked for."""
    if (controller_of(old) or {}).get("uid") != (controller_of(new) or {}).get("uid"):
        return []
    one, other = annotations_of(old), annotations_of(new)
    return [name for name in _WHAT if name in other and one.get(name) != other[name]]


def _failing(pod: Object) -> tuple[str, str] | None:
    """Return the container that keeps a Pod from being Ready, and what it says of it.

    Empty for the container if the Pod has no place, and none comes free by itself.
    """
    placed = get_condition(pod, "PodScheduled") or {}
    if placed.get("status") == "False" and NEXT_STEP in str(placed.get("message")):
        return "", str(placed["message"])
    for status in (*pod_state.statuses(pod, init=True), *pod_state.statuses(pod)):
        ended = pod_state.terminated(status) or pod_state.last_terminated(status)
        waiting = pod_state.stuck(status)
        if pod_state.failed(ended):
            assert ended is not None
            message = str(ended.get("message") or "")
            if not message or ended.get("reason") == "OOMKilled":
                message = f"{ended.get('reason')}, exit code {ended.get('exitCode')}"
            return str(status.get("name")), message
        if waiting is not None:
            return str(status.get("name")), ": ".join(filter(None, waiting))
    return None


def _log(folder: Path, container: str) -> list[str]:
    """Return the last lines of a container's run, and of the run before where it has just begun."""
    text = b""
    for name in (f"{container}.previous.log", f"{container}.log"):
        try:
            with (folder / name).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
                text += file.read()
        except OSError:
            continue
    return text.decode(errors="replace").splitlines()


def _readable(message: str, state: Path) -> str:
    """Return what says most, with a model's file as in the project and not as in a snapshot."""
    snapshot = re.escape(str(state / MODELS)) + r"/([^/\s]+)-[0-9a-f]{16}/(?:\1(?=$|[\s\"':;,]))?"
    line = headline(message).rstrip(".") or "it does not become ready"
    return re.sub(snapshot, lambda m: m[1] if m[0].endswith(m[1]) else f"{m[1]}/", line)
