"""`kserve-local rollout`: revisions and the split of an InferenceService's traffic (Knative mode).

`status` and `history` read. `set-canary`, `promote` and `undo` change `canaryTrafficPercent`, in
the user's YAML where the service comes from one, and follow until KServe has done what it asks for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kserve_local.cli.options import COMPONENTS, Common, Duration, common
from kserve_local.cli.output import envelope_text
from kserve_local.errors import TimedOut

if TYPE_CHECKING:
    from kserve_local.cli.rollout_change import Wish
    from kserve_local.cli.rollout_plan import Step
    from kserve_local.cli.rollout_service import Found
    from kserve_local.cli.rollout_view import ComponentView
    from kserve_local.client.client import Client
    from kserve_local.settings import Settings

PERIOD = 1.0
"""Seconds between two looks of `status --watch`."""
F = TypeVar("F", bound=Callable[..., Any])


@click.group("rollout")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Revisions of an InferenceService and how its traffic is split (Knative mode)."""
    ctx.default_map = dict.fromkeys(command.commands, ctx.default_map or {})


_component = click.option(
    "--component",
    type=click.Choice(COMPONENTS),
    help="Whose revisions (default: all; of a change: the predictor's).",
)


def _changing(function: F) -> F:
    """Add what the commands that change something share."""
    for option in (
        click.option("--timeout", type=Duration(), default="60s", help="How long to follow it."),
        click.option("--no-wait", is_flag=True, help="Do not follow it."),
        click.option("--no-edit", is_flag=True, help="Leave the YAML; change what runs only."),
        _component,
    ):
        function = option(function)
    return function


@command.command("status")
@click.argument("name")
@_component
@click.option("-w", "--watch", is_flag=True, help="Show it again whenever it changes.")
@common
def status(flags: Common, name: str, component: str | None, watch: bool) -> int:
    """Show how the traffic of NAME is split, what that means, and what to do next."""
    from kserve_local.cli import rollout_words as words

    settings, shown = flags.settings_of_running(), ""
    while True:
        found = _fetch(settings, flags, name, component)
        if flags.as_json:
            text = envelope_text("rollout", "ok", found.as_json())
        else:
            text = "\n\n".join(_status(view, many=len(found.views) > 1) for view in found.views)
        if _ageless(found.views) != shown:
            if shown and sys.stdout.isatty():
                click.clear()
            click.echo(text)
            sys.stdout.flush()
            shown = _ageless(found.views)
        if not watch:
            break
        time.sleep(PERIOD)
    out = flags.output("rollout")
    steps = [step for view in found.views for step in words.next_steps(view)]
    if steps and not flags.as_json:
        left = max(len(line) for line, _ in steps)
        out.say()
        for line, what in steps:
            out.say(f"  {line:<{left}}   {what}")
    return 0


def _status(view: ComponentView, *, many: bool) -> str:
    from kserve_local.cli import rollout_words as words

    who = f"{view.service} {view.component}" if many else view.service
    return "\n".join(filter(None, (f"{who}: {words.meaning(view)}", words.status_table(view))))


def _ageless(views: Sequence[ComponentView]) -> str:
    """Return what counts as a change of what is shown: an age is none."""
    return repr([(v.phase, v.canary, [replace(r, age=0.0) for r in v.revisions]) for v in views])


@command.command("history")
@click.argument("name")
@_component
@common
def history(flags: Common, name: str, component: str | None) -> int:
    """List the revisions of NAME that are kept: age, traffic, file, and what each changed."""
    from kserve_local.cli import rollout_words as words

    found = _fetch(flags.settings_of_running(), flags, name, component)
    if flags.as_json:
        flags.output("rollout").envelope(found.as_json())
        return 0
    for number, view in enumerate(found.views):
        if len(found.views) > 1:
            click.echo(f"{chr(10) if number else ''}{view.component}:")
        click.echo(words.history_table(view) or "no revision yet")
    return 0


@command.command("set-canary")
@click.argument("name")
@click.argument("percent", metavar="PCT", type=click.IntRange(0, 100))
@_changing
@common
def set_canary(
    flags: Common,
    name: str,
    percent: int,
    component: str | None,
    no_edit: bool,
    no_wait: bool,
    timeout: float,
) -> int:
    """Send PCT percent of NAME's requests to its latest revision, the rest to the one before.

    Other changes of the YAML that were not applied yet go along: edit the model, then set-canary.
    """
    from kserve_local.cli.rollout_change import Wish

    wish = Wish("set-canary", component or "predictor", percent, no_edit, no_wait, timeout)
    return _change(flags, name, wish)


@command.command("promote")
@click.argument("name")
@_changing
@common
def promote(
    flags: Common, name: str, component: str | None, no_edit: bool, no_wait: bool, timeout: float
) -> int:
    """Send all of NAME's requests to its latest revision."""
    from kserve_local.cli.rollout_change import Wish

    wish = Wish("promote", component or "predictor", 100, no_edit, no_wait, timeout)
    return _change(flags, name, wish)


@command.command("undo")
@click.argument("name")
@_changing
@common
def undo(
    flags: Common, name: str, component: str | None, no_edit: bool, no_wait: bool, timeout: float
) -> int:
    """Send all of NAME's requests back to the revision that had them last.

    As KServe rolls back: the canary gets 0 %, before its promotion and right after it.
    """
    from kserve_local.cli.rollout_change import Wish

    wish = Wish("undo", component or "predictor", 0, no_edit, no_wait, timeout)
    return _change(flags, name, wish)


def _fetch(settings: Settings, flags: Common, name: str, component: str | None) -> Found:
    from kserve_local.cli.rollout_service import look
    from kserve_local.cli.session import run

    namespace = flags.namespace or settings.namespace

    async def work(client: Client) -> Found:
        return await look(client, namespace, name, component)

    return run(settings, work)


def _change(flags: Common, name: str, wish: Wish) -> int:
    from kserve_local.cli import rollout_words as words
    from kserve_local.cli.rollout_change import carry_out, follow
    from kserve_local.cli.rollout_service import look
    from kserve_local.cli.rollout_view import FIELD
    from kserve_local.cli.session import run

    settings, out = flags.settings_of_running(), flags.output("rollout")
    namespace = flags.namespace or settings.namespace

    async def work(client: Client) -> tuple[ComponentView, Step, str, bool]:
        found = await look(client, namespace, name, wish.component)
        step, edited = await carry_out(client, found, wish, settings, out)
        for sentence in step.says:
            out.say(f"  {sentence}")
        view, done = await follow(client, found, step, wish)
        return view, step, edited, done

    def warn(text: str) -> None:
        out.say(f"warning: {text}", fg="yellow")

    view, step, edited, done = run(settings, work, warn)
    if not done and not wish.no_wait:
        raise TimedOut(
            f"{view.service} is not there yet after {wish.patience:g} s: {words.meaning(view)}",
            hint=f"kserve-local rollout status {view.service} -w",
        )
    if flags.as_json:
        changed = {"field": FIELD, "value": step.value, "file": edited or None, "done": done}
        told = {"namespace": view.namespace, "name": view.service}
        entry = words.as_json(view)
        out.envelope({**told, "changed": changed, "says": step.says, "components": [entry]})
        return 0
    rest = view.revision(step.rest)
    if done and rest is not None and rest.percent and not rest.replicas:
        out.say(f"  {rest.number} has no replica yet; its requests wait for one")
    what = f"{FIELD} taken out" if step.value is None else f"{FIELD} {step.value}"
    out.data(f"{view.service}: {words.meaning(view) if done else what}")
    return 0
