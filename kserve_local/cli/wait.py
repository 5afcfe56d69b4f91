"""`kserve-local wait`: block until services are Ready, gone, without replicas, or on a revision."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import click

from kserve_local.cli.options import Common, Duration, common
from kserve_local.errors import KServeLocalError, NotFound, ServiceUnavailable, TimedOut

if TYPE_CHECKING:
    from kserve_local.api.meta import Object
    from kserve_local.api.scheme import ResourceType
    from kserve_local.cli.views import View
    from kserve_local.client.client import Client

Name = tuple[str, str]
REVISION = "revision="
CONDITIONS = ("ready", "scaled-to-zero", "delete")


class Condition(click.ParamType[str]):
    """One of `CONDITIONS`, or `revision=R`."""

    name = "condition"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text not in CONDITIONS and not (text.startswith(REVISION) and text != REVISION):
            self.fail(f"{text!r} is none of {', '.join(CONDITIONS)}, {REVISION}R.", param, ctx)
        return text


@click.command("wait")
@click.argument("names", nargs=-1)
@click.option(
    "--for",
    "condition",
    type=Condition(),
    default="ready",
    metavar="CONDITION",
    help=f"{', '.join(CONDITIONS)}, or {REVISION}R: R (its name or number) is Ready.",
)
@click.option("--timeout", type=Duration(), default="60s")
@common
def command(flags: Common, names: tuple[str, ...], condition: str, timeout: float) -> int:
    """Wait for the services NAMEd (default: all). Exit 4 when one failed, 5 when time is up."""
    from kserve_local.api import scheme
    from kserve_local.api.meta import name_of, namespace_of
    from kserve_local.cli.progress import Follower, Reporter, log_tail
    from kserve_local.cli.session import list_services, run, service_name

    settings = flags.settings_of_running()
    out = flags.output("wait")
    namespace = flags.namespace or settings.namespace
    views: dict[Name, View] = {}
    left: set[Name] = set()
    tails: dict[Name, list[str]] = {}
    shown: Collection[Name] = ()
    kinds: dict[Name, str] = {}

    async def work(client: Client) -> str:
        nonlocal shown
        services = await list_services(client, namespace=flags.namespace)
        known = {(namespace_of(s), name_of(s)) for s in services}
        wanted = {(namespace, service_name(n)) for n in names} or known
        if not wanted:
            where = f" in namespace {flags.namespace}" if flags.namespace else ""
            out.say(f"there is no InferenceService{where} to wait for")
        if condition == "delete":
            left.update(wanted & known)
            for kind in (scheme.INFERENCE_SERVICE, scheme.INFERENCE_GRAPH):
                own = {(namespace_of(s), name_of(s)) for s in services if scheme.of(s) is kind}
                gone = wanted & own
                left.difference_update(gone)
                gone_at = _deletions(client, gone, kind)
                outcome = await _until(gone_at, gone, timeout, done="deleted")
                left.update(gone)
                if outcome != "deleted":
                    return outcome
            return "deleted"
        absent = sorted(n for ns, n in wanted - known)
        if absent:
            raise NotFound(f'inferenceservices.serving.kserve.io "{absent[0]}" not found')
        left.update(wanted)
        kinds.update({(namespace_of(s), name_of(s)): str(s["kind"]) for s in services})
        if condition == "scaled-to-zero":
            return await _until(_replicas(client, left), left, timeout, done=condition)
        if condition.startswith(REVISION):
            steps = _revisions(client, left, condition.removeprefix(REVISION), views)
            outcome = await _until(steps, left, timeout, done="ready")
            for ns, n in left if outcome == "failed" else ():
                isvc = await client.get(scheme.INFERENCE_SERVICE, n, ns)
                tails[ns, n] = await log_tail(client, isvc)
            return outcome
        out.fit(n for _, n in wanted)
        # Why one failed is told once, in the end; that it did, at once while others go on.
        failures: Literal["short", "not"] = "short" if len(wanted) > 1 else "not"
        reporter = Reporter(out, events=False, failures=failures)
        follower = Follower(client, reporter, wanted)
        outcome = await follower.until_settled(timeout)
        views.update(follower.views)
        shown = reporter.lines
        for name in wanted if outcome == "failed" else ():
            if name in views and views[name].state == "Failed":
                tails[name] = await follower.log_tail(name)
        states = ("Ready", "Stopped") if outcome != "failed" else ("Ready", "Stopped", "Loading")
        left.intersection_update(
            n for n in wanted if n not in views or views[n].state not in states
        )
        return outcome

    outcome = run(settings, work)
    if outcome == "timeout":
        raise _error(TimedOut, f"{_not_yet(condition)} after {timeout:g} s", left, views, kinds)
    if outcome == "failed":
        for name, lines in tails.items():
            for line in lines if name not in shown and not flags.as_json else ():
                out.say(f"      {name[1]} │ {line}")
        raise _error(ServiceUnavailable, "failed", left, views, kinds, tails)
    if flags.as_json:
        out.envelope({"outcome": outcome})
    return 0


def _not_yet(condition: str) -> str:
    """Return in words what did not come."""
    if condition.startswith(REVISION):
        return f"does not serve from revision {condition.removeprefix(REVISION)}"
    return {
        "ready": "not Ready",
        "scaled-to-zero": "still has replicas",
        "delete": "still there",
    }[condition]


def _error(
    error: type[KServeLocalError],
    what: str,
    left: set[Name],
    views: Mapping[Name, View],
    kinds: Mapping[Name, str],
    tails: Mapping[Name, Sequence[str]] | None = None,
) -> KServeLocalError:
    """Return the error that names each service, why, and what helps."""
    from kserve_local.api.headlines import NEXT_STEP
    from kserve_local.cli.status import told

    lines, services = [], []
    steps: dict[str, None] = {}
    for namespace, name in sorted(left):
        seen = views.get((namespace, name))
        reason, message = (seen.reason, seen.message) if seen else ("", "")
        why = told(reason, message)
        kind = kinds.get((namespace, name), "InferenceService")
        lines.append(f'{kind} "{namespace}/{name}" {what}' + (f": {why}" if why else ""))
        found = {"namespace": namespace, "name": name, "state": seen.state if seen else ""}
        log = {"log": list(tails.get((namespace, name), ()))} if tails is not None else {}
        services.append({**found, "reason": reason, "message": message, **log})
        steps |= dict.fromkeys(s for s in message.splitlines() if s.startswith(NEXT_STEP))
    first = sorted(left)[:1]
    hint = "".join(f"kserve-local logs {name} -n {ns} --tail 50   ·   " for ns, name in first)
    return error(
        "\n".join(lines) or what,
        hint="\n".join([*steps, f"{hint}kserve-local status"]),
        details={"services": services},
    )


async def _until(
    steps: AsyncGenerator[bool, None], left: set[Name], patience: float, *, done: str
) -> str:
    """Follow `steps`, which empty `left`; a true step is a failure."""
    import asyncio

    try:
        async with asyncio.timeout(patience), aclosing(steps) as following:
            while left:
                if await anext(following):
                    return "failed"
    except TimeoutError:
        return "timeout"
    return done


async def _deletions(
    client: Client, left: set[Name], kind: ResourceType
) -> AsyncGenerator[bool, None]:
    """Take out of `left` what is there no more."""
    found, version = await client.list_at(kind)
    left &= {_name(isvc) for isvc in found}
    yield False
    async with aclosing(client.watch(kind, since=version)) as events:
        async for event in events:
            if event.type == "DELETED":
                left.discard(_name(event.object))
            yield False
    raise _ended()


async def _replicas(client: Client, left: set[Name]) -> AsyncGenerator[bool, None]:
    """Take out of `left` the services without a Pod; one that is ending counts."""
    from kserve_local.api import scheme

    pods, version = await client.list_at(scheme.POD)
    there = {str(pod["metadata"]["uid"]): _owner(pod) for pod in pods}
    wanted = set(left)

    def look() -> None:
        left.clear()
        left.update(wanted & set(there.values()))

    look()
    yield False
    async with aclosing(client.watch(scheme.POD, since=version)) as events:
        async for event in events:
            uid = str(event.object["metadata"]["uid"])
            if event.type == "DELETED":
                there.pop(uid, None)
            else:
                there[uid] = _owner(event.object)
            look()
            yield False
    raise _ended()


async def _revisions(
    client: Client, left: set[Name], revision: str, views: dict[Name, View]
) -> AsyncGenerator[bool, None]:
    """Take out of `left` the services whose revision is Ready; true when it has failed."""
    from kserve_local.api import scheme
    from kserve_local.cli.session import is_revision
    from kserve_local.cli.views import view

    is_meant = partial(is_revision, revision)
    async with aclosing(client.watch(scheme.INFERENCE_SERVICE)) as events:
        async for event in events:
            name = _name(event.object)
            if name not in left or event.type not in ("ADDED", "MODIFIED"):
                continue
            status = event.object.get("status") or {}
            components = status.get("components") or {}
            # A number is the predictor's; every component counts its own.
            told = [
                c
                for name_of_it, c in components.items()
                if name_of_it == "predictor" or not revision.isdecimal()
            ]
            served = [t.get("revisionName") for c in told for t in c.get("traffic") or ()]
            ready = [*(c.get("latestReadyRevision") for c in told), *served]
            created = [c.get("latestCreatedRevision") for c in told]
            views[name] = view(event.object)
            if any(map(is_meant, ready)):
                left.discard(name)
            elif views[name].state == "Failed" and any(map(is_meant, created)):
                left.intersection_update({name})
                yield True
            yield False
    raise _ended()


def _name(obj: Object) -> Name:
    from kserve_local.api.meta import name_of, namespace_of

    return namespace_of(obj), name_of(obj)


def _owner(pod: Object) -> Name:
    from kserve_local.api.meta import namespace_of
    from kserve_local.cli.progress import service_of

    return namespace_of(pod), service_of(pod)


def _ended() -> ServiceUnavailable:
    return ServiceUnavailable("the supervisor ended", hint="kserve-local status")
