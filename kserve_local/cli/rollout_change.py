"""Carries out one change of `canaryTrafficPercent`: in the user's YAML, or the running object.

The order is the safe one: what the change means is decided first, the API server is asked whether
it takes it, then the file is written, then it is applied, and then followed until it is done.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from kserve_local.api import names
from kserve_local.api.meta import Object, annotations_of, name_of, namespace_of
from kserve_local.api.scheme import INFERENCE_SERVICE
from kserve_local.cli.manifest_source import Source, source_of, write
from kserve_local.cli.output import Output
from kserve_local.cli.revision_changes import changed_fields
from kserve_local.cli.rollout_plan import Action, Step, is_done, plan
from kserve_local.cli.rollout_service import Found, look
from kserve_local.cli.rollout_view import FIELD, ComponentView
from kserve_local.client.client import Client
from kserve_local.client.project import OBSERVED
from kserve_local.errors import Conflict, Invalid, ServiceUnavailable
from kserve_local.settings import Settings

LOOK = 0.1
"""Seconds between two looks while a change is followed."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What one command asks for."""

    action: Action
    component: str
    percent: int
    no_edit: bool
    no_wait: bool
    patience: float


async def carry_out(
    client: Client, found: Found, wish: Wish, settings: Settings, out: Output
) -> tuple[Step, str]:
    """Change the field; return what that means and which file was edited, empty if none.

    Raises:
        UsageError: There is nothing to do.
        ServiceUnavailable: It would have no effect now.
        Conflict: The file has changes that would go along, or was saved meanwhile.
        Invalid: The file cannot be read or edited, or the API server refuses the change.
    """
    (view,) = found.views
    if annotations_of(found.isvc).get(names.DISABLE_AUTO_UPDATE) == "true":
        raise ServiceUnavailable(
            f'InferenceService "{view.namespace}/{view.service}" has the annotation '
            f"{names.DISABLE_AUTO_UPDATE}: KServe holds changes back while it is Ready",
            hint="take the annotation out first",
        )
    field = ("spec", wish.component, FIELD)
    source = source_of(found.isvc, settings) if not wish.no_edit else None
    others = await _not_applied(client, found.isvc, source) if source is not None else []
    step = plan(view, wish.action, wish.percent, more=bool(others))
    edited = ""
    if source is not None:
        if others and wish.action != "set-canary":
            raise Conflict(
                f"{source.shown} has changes that were not applied and would go along: "
                f"{', '.join(others)}",
                hint=f"kserve-local apply -f {source.shown}   first, or --no-edit",
            )
        edited = await _edit(client, source, field, step.value, settings, out)
        for path in others:
            out.say(f"  applied with it: {path}")
    name, namespace = name_of(found.isvc), namespace_of(found.isvc)
    now = await client.get(INFERENCE_SERVICE, name, namespace)
    if (now["spec"].get(wish.component) or {}).get(FIELD) != step.value:
        # From no file, or set by other means than `apply`, which then does not take it away.
        patch = {"spec": {wish.component: {FIELD: step.value}}}
        await client.patch(INFERENCE_SERVICE, name, patch, namespace)
        if source is None:
            _say_where(found.isvc, wish, settings, step, out)
    return step, edited


def _say_where(isvc: Object, wish: Wish, settings: Settings, step: Step, out: Output) -> None:
    try:
        source = source_of(isvc, settings)
    except Invalid:
        return
    if source is None:
        out.say("  no file of the project holds it: only what runs was changed")
        return
    theirs = (source.object["spec"].get(wish.component) or {}).get(FIELD)
    if theirs != step.value:
        says = "does not have the field" if theirs is None else f"says {theirs}"
        out.say(f"  {source.shown} {says}; the next up or apply may bring that back", fg="yellow")


async def _not_applied(client: Client, isvc: Object, source: Source) -> list[str]:
    """Return the fields that the file has otherwise than the running object, the canary's aside."""
    after, what = await client.apply(source.object, dry_run=True)
    if what == "unchanged":
        return []

    def told(obj: Object) -> dict[str, Any]:
        metadata = {k: obj["metadata"].get(k) or {} for k in ("labels", "annotations")}
        return {"metadata": metadata, "spec": obj["spec"]}

    paths = changed_fields(told(isvc), told(after))
    return [path for path in paths if not path.endswith(f".{FIELD}")]


async def _edit(
    client: Client,
    source: Source,
    field: tuple[str, ...],
    value: int | None,
    settings: Settings,
    out: Output,
) -> str:
    """Change the file and apply it; return its name, empty if it said so already."""
    after = source.changed(field, value, settings)
    # Refused before anything is written, should it be.
    await client.apply(after.object, dry_run=True)
    edited = after.content != source.content
    if edited:
        write(source, after)
        line = (source if value is None else after).line_of(field)
        what = f"{field[-1]} taken out" if value is None else f"{field[-1]}: {value}"
        out.say(f"  {source.shown}:{line}  {what}")
    await client.apply(after.object)
    return source.shown if edited else ""


async def follow(
    client: Client, found: Found, step: Step, wish: Wish
) -> tuple[ComponentView, bool]:
    """Return how it stands when the step is done, or time is up; and whether it is done.

    Raises:
        ServiceUnavailable: The spec cannot be carried out.
    """
    name, namespace = name_of(found.isvc), namespace_of(found.isvc)
    end = time.monotonic() + (0 if wish.no_wait else wish.patience)
    while True:
        seen = await client.call("GET", OBSERVED)
        now = await look(client, namespace, name, wish.component)
        (view,) = now.views
        own = next(
            (s for s in seen["services"] if (s["namespace"], s["name"]) == (namespace, name)), None
        )
        generation = now.isvc["metadata"].get("generation") or 0
        settled = own is not None and own["settled"] and own["generation"] >= generation
        if settled and own is not None and own["message"]:
            raise ServiceUnavailable(own["message"], hint=f"kserve-local status {name}")
        if (settled and is_done(view, step)) or time.monotonic() >= end:
            return view, settled and is_done(view, step)
        await asyncio.sleep(LOOK)
