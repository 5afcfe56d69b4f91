"""Moves the traffic of a `latestRevision` target to a new Revision step by step. Pure.

The state machine of `serving.knative.dev/rollout-duration` (traffic.md 4.5; knative/serving
pkg/reconciler/route/traffic/rollout.go): a new Revision starts with 1 %, taken from the newest one
before it; how long the network took to know that sets the shortest step; equal steps, the last one
to the full share. A Revision that comes in between starts anew on top of what there is.

On a cluster the state is an annotation of the Route's ingress; here one of the Knative Service.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kserve_local.api.names import LOCAL_PREFIX, ROLLOUT_DURATIONS
from kserve_local.api.validation_knative import parse_duration

STATE = f"{LOCAL_PREFIX}/rollout"
"""Annotation (ours) of a Knative Service: its rollouts in progress as JSON, by tag."""

REASON = "RolloutInProgress"
MESSAGE = "A gradual rollout of the latest revision(s) is in progress."


@dataclass(frozen=True, slots=True)
class Share:
    """What one Revision has of all requests, in percent."""

    revision: str
    percent: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """How the traffic of one `latestRevision` target is divided. Times are epoch seconds.

    Args:
        percent: The target's; the shares add up to it.
        shares: From the oldest Revision to the newest; one: nothing is being rolled out.
        started: When the newest one got its first percent; 0: no rollout.
        next_step: When the next step is due, 0 before `observe_ready`.
        interval: Seconds between two steps.
        size: Percent that one step moves, 0 before `observe_ready`.
    """

    percent: int
    shares: tuple[Share, ...]
    started: float = 0.0
    next_step: float = 0.0
    interval: float = 0.0
    size: int = 0

    @property
    def done(self) -> bool:
        """Whether the newest Revision has all of it."""
        return len(self.shares) < 2


def duration_of(annotations: Mapping[str, str]) -> float:
    """Return the seconds a rollout may take, in whole ones; 0: traffic moves at once."""
    asked = next((annotations[key] for key in ROLLOUT_DURATIONS if key in annotations), "")
    return float(int(parse_duration(asked) or 0.0))


def settled(percent: int, revision: str) -> Rollout:
    """Return the state in which one Revision has all of it."""
    return Rollout(percent, (Share(revision, percent),))


def follow(before: Rollout | None, percent: int, revision: str, *, now: float) -> Rollout:
    """Return the state after `before`, on the way to `percent` for `revision`.

    Args:
        before: None: there was no traffic yet, so there is nothing to move.
        percent: Of the target in `spec.traffic`.
        revision: The latest ready one.
    """
    goal = settled(percent, revision)
    if before is None or before.percent == 0 or percent <= 1:
        return goal
    shares = _resized(before, percent)
    if not shares:
        return goal
    if shares[-1].revision != revision:
        return Rollout(percent, _begun(shares, revision), started=now)
    if len(shares) == 1:
        return goal
    return _stepped(replace(before, percent=percent, shares=shares), now)


def observe_ready(rollout: Rollout, duration: float, *, now: float) -> Rollout:
    """Return a rollout that has just begun with its steps set, others unchanged.

    Args:
        duration: Seconds that all of it may take.
        now: When requests followed the first percent.
    """
    if rollout.done or rollout.size or not rollout.started:
        return rollout
    shortest = max(1.0, math.ceil(now - rollout.started))
    left = max(1.0, duration - shortest)
    to_move = rollout.percent - 1
    steps = min(max(1.0, left / shortest), to_move)
    interval = left / steps
    # Half a percent rounds up, as Go's math.Round does.
    size = math.floor(to_move / steps + 0.5)
    return replace(rollout, interval=interval, size=size, next_step=now + interval)


def _resized(before: Rollout, percent: int) -> tuple[Share, ...]:
    """Return the shares for another percent: the newest gains, the oldest lose first."""
    shares = list(before.shares)
    change = percent - before.percent
    if change > 0 and shares:
        shares[-1] = replace(shares[-1], percent=shares[-1].percent + change)
    while change < 0 and shares:
        if shares[0].percent > -change:
            shares[0] = replace(shares[0], percent=shares[0].percent + change)
            break
        change += shares.pop(0).percent
    return tuple(shares)


def _begun(shares: tuple[Share, ...], revision: str) -> tuple[Share, ...]:
    """Return the shares with 1 % for a new Revision, taken from the newest one that has any."""
    giver = max(n for n, share in enumerate(shares) if share.percent > 0)
    given = (replace(share, percent=share.percent - (n == giver)) for n, share in enumerate(shares))
    return (*(share for share in given if share.percent > 0), Share(revision, 1))


def _stepped(rollout: Rollout, now: float) -> Rollout:
    """Return the rollout after one step, if it is due: the newest of the old ones gives first."""
    if not rollout.size or now < rollout.next_step:
        return rollout
    *old, latest = rollout.shares
    left = rollout.size
    while old and left > 0:
        if old[-1].percent > left:
            old[-1] = replace(old[-1], percent=old[-1].percent - left)
            break
        left -= old.pop().percent
    full = min(latest.percent + rollout.size, rollout.percent)
    if not old:
        return settled(rollout.percent, latest.revision)
    shares = (*old, Share(latest.revision, full))
    return replace(rollout, shares=shares, next_step=now + rollout.interval)


def without(rollout: Rollout | None, there: Collection[str]) -> Rollout | None:
    """Return the rollout without Revisions that were deleted; their share goes to the next newer.

    None: none of its Revisions is left.
    """
    if rollout is None:
        return None
    shares: list[Share] = []
    loose = 0
    for share in rollout.shares:
        if share.revision not in there:
            loose += share.percent
        else:
            shares.append(replace(share, percent=share.percent + loose))
            loose = 0
    if not shares:
        return None
    shares[-1] = replace(shares[-1], percent=shares[-1].percent + loose)
    return replace(rollout, shares=tuple(shares))


def to_text(rollouts: Mapping[str, Rollout]) -> str:
    """Return the annotation's value for the rollouts in progress, empty if there are none."""
    running = {tag: asdict(rollout) for tag, rollout in rollouts.items() if not rollout.done}
    return json.dumps(running, separators=(",", ":"), sort_keys=True) if running else ""


def from_text(text: str) -> dict[str, Rollout]:
    """Return what `to_text` wrote; empty for a text that says no such thing."""
    try:
        found = {tag: _rollout(data) for tag, data in json.loads(text or "{}").items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
    return found if all(map(_is_valid, found.values())) else {}


def _rollout(data: Mapping[str, Any]) -> Rollout:
    shares = tuple(Share(str(s["revision"]), int(s["percent"])) for s in data["shares"])
    times = {key: float(data[key]) for key in ("started", "next_step", "interval")}
    return Rollout(int(data["percent"]), shares, size=int(data["size"]), **times)


def _is_valid(rollout: Rollout) -> bool:
    return (
        0 <= rollout.size <= 100
        and rollout.percent <= 100
        and all(share.percent > 0 for share in rollout.shares)
        and sum(share.percent for share in rollout.shares) == rollout.percent
    )


def from_traffic(traffic: Sequence[Mapping[str, Any]]) -> dict[str, Rollout]:
    """Return what a Knative Service's `status.traffic` says, by tag, where it is settled.

    A split without its state cannot go on: it is left out, and ends at once.
    """
    shares: dict[str, list[Share]] = {}
    for entry in traffic:
        percent = int(entry.get("percent") or 0)
        if entry.get("latestRevision") and entry.get("revisionName") and percent:
            tag = str(entry.get("tag") or "")
            shares.setdefault(tag, []).append(Share(str(entry["revisionName"]), percent))
    return {tag: settled(s[0].percent, s[0].revision) for tag, s in shares.items() if len(s) == 1}


def next_step(rollouts: Mapping[str, Rollout]) -> float | None:
    """Return when to look again, None if nothing is in progress."""
    return min((r.next_step for r in rollouts.values() if not r.done), default=None)
