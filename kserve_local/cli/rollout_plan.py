"""What `rollout promote|undo|set-canary` write into `canaryTrafficPercent`, and why not. Pure.

KServe has this one field; what a value does depends on what was rolled out before (control-plane.md
6.1). A `Step` says it before it is done, and by what one sees that it is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kserve_local.cli.rollout_view import FIELD, ComponentView, can_go_back
from kserve_local.cli.rollout_words import number_of
from kserve_local.errors import ServiceUnavailable, UsageError

_STAYS_ZERO = f"{FIELD} stays 0: the next new revision gets no requests either, until you say so"

Action = Literal["promote", "undo", "set-canary"]


@dataclass(frozen=True, slots=True)
class Step:
    """One change of the field.

    Args:
        value: What it becomes; None: it goes.
        says: What KServe makes of it, one sentence each.
        rest: The Revision that gets what is left of 100 %; empty: whichever was rolled out.
    """

    value: int | None
    says: tuple[str, ...] = ()
    rest: str = ""


def plan(view: ComponentView, action: Action, percent: int = 0, *, more: bool = False) -> Step:
    """Return the change that an action is.

    Args:
        percent: Of `set-canary`.
        more: Other changes of the spec go along and make a new Revision.

    Raises:
        UsageError: There is nothing to do.
        ServiceUnavailable: It would have no effect now, or another one than the action's.
    """
    if action == "promote":
        return _promote(view)
    if action == "undo":
        return _undo(view)
    return _set(view, percent, more=more)


def _promote(view: ComponentView) -> Step:
    _has_rolled_out(view)
    if view.phase == "failed":
        newest = view.revision(view.created)
        why = f": {newest.message}" if newest and newest.message else ""
        raise ServiceUnavailable(
            f"{number_of(view.created)} of {_who(view)} does not become ready{why}; to promote it "
            "would give it all traffic as soon as it does",
            hint=f"kserve-local logs {view.service} --revision {number_of(view.created)}\n"
            f"kserve-local rollout set-canary {view.service} 100   if that is what you want",
        )
    if view.phase == "starting":
        raise ServiceUnavailable(
            f"{number_of(view.created)} of {_who(view)} is not ready yet",
            hint=f"kserve-local wait {view.service}",
        )
    if view.canary is None or view.canary >= 100:
        raise UsageError(
            f"nothing to promote: {_who(view)} has no canary, all traffic goes to "
            f"{number_of(view.ready)}",
            hint=f"kserve-local rollout status {view.service}",
        )
    return Step(None)


def _undo(view: ComponentView) -> Step:
    _has_rolled_out(view)
    latest, kept = number_of(view.ready), number_of(view.rolled_out)
    if view.canary == 0:
        raise UsageError(
            f"nothing to undo: {_who(view)} has {FIELD} 0 already, all traffic goes to {kept}",
            hint=f"kserve-local rollout promote {view.service}   gives it back to {latest}",
        )
    if view.created != view.ready:
        newest = number_of(view.created)
        return Step(
            0,
            (f"{newest} was never ready and had no requests; with 0 % it gets none when it is",),
            rest=view.rolled_out,
        )
    if view.ready != view.rolled_out:
        return Step(0, (_STAYS_ZERO,), rest=view.rolled_out)
    if can_go_back(view):
        return Step(0, (_two_passes(view), _STAYS_ZERO), rest=view.previous)
    gone = view.previous and view.previous != view.rolled_out
    raise UsageError(
        f"nothing to undo: {_who(view)} has no earlier revision that had all traffic"
        + (f" ({number_of(view.previous)} was deleted)" if gone else ""),
        hint=f"kserve-local rollout history {view.service}",
    )


def _set(view: ComponentView, percent: int, *, more: bool) -> Step:
    _has_rolled_out(view)
    if percent >= 100:
        return Step(percent)
    if more or view.created != view.ready or view.ready != view.rolled_out:
        return Step(percent, rest=view.rolled_out)
    if can_go_back(view):
        return Step(percent, (_two_passes(view),), rest=view.previous)
    return Step(
        percent,
        (
            f"{number_of(view.ready)} is the only revision that had all traffic, so both shares "
            f"are it; the next change of the spec gets {percent} %",
        ),
    )


def _two_passes(view: ComponentView) -> str:
    latest, previous = number_of(view.ready), number_of(view.previous)
    return (
        f"{latest} was rolled out, so KServe takes this as a rollback, in two passes: first both "
        f"shares are {latest}, then latestRolledoutRevision goes back to {previous}"
    )


def _has_rolled_out(view: ComponentView) -> None:
    if view.rolled_out:
        return
    raise ServiceUnavailable(
        f"no revision of {_who(view)} had all traffic yet, and until then KServe ignores {FIELD}",
        hint=f"kserve-local wait {view.service}",
    )


def _who(view: ComponentView) -> str:
    what = f'InferenceService "{view.namespace}/{view.service}"'
    return what if view.component == "predictor" else f"the {view.component} of {what}"


def is_done(view: ComponentView, step: Step) -> bool:
    """Whether traffic is what the step asks for; a gradual rollout counts once it has begun."""
    want = 100 if step.value is None else step.value
    if view.canary != step.value:
        return False
    latest = view.revision(view.ready)
    if latest is None or view.phase == "gradual":
        return view.phase == "gradual"
    if want >= 100:
        return latest.percent == 100 and view.rolled_out == view.ready
    rest = view.revision(step.rest or view.rolled_out)
    if rest is None or rest is latest:
        # One revision has both shares; or the newest is not ready, and the last one has all.
        return latest.percent == 100
    return latest.percent == want and rest.percent == 100 - want
