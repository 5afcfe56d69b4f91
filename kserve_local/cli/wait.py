"""`kserve-local wait`: block until services are Ready or gone."""

from __future__ import annotations

from contextlib import aclosing

import click

from kserve_local.cli.options import Common, Duration, common
from kserve_local.errors import NotFound, ServiceUnavailable, TimedOut


@click.command("wait")
@click.argument("names", nargs=-1)
@click.option("--for", "condition", type=click.Choice(["ready", "delete"]), default="ready")
@click.option("--timeout", type=Duration(), default="60s")
@common
def command(flags: Common, names: tuple[str, ...], condition: str, timeout: float) -> int:
    """Wait for the services NAMEd (default: all). Exit 4 when one failed, 5 when time is up."""
    from kserve_local.api import scheme
    from kserve_local.api.meta import name_of, namespace_of
    from kserve_local.cli.progress import Follower, Reporter
    from kserve_local.cli.session import run, service_name
    from kserve_local.client.client import Client

    settings = flags.settings()
    out = flags.output("wait")
    namespace = flags.namespace or settings.namespace

    async def work(client: Client) -> str:
        services = await client.list(scheme.INFERENCE_SERVICE, namespace=flags.namespace)
        known = {(namespace_of(s), name_of(s)) for s in services}
        wanted = {(namespace, service_name(n)) for n in names} or known
        if condition == "delete":
            return await _gone(client, wanted & known, timeout)
        absent = sorted(n for ns, n in wanted - known)
        if absent:
            raise NotFound(f'inferenceservices.serving.kserve.io "{absent[0]}" not found')
        out.fit(n for _, n in wanted)
        reporter = Reporter(out, events=False)
        return await Follower(client, reporter, wanted).until_settled(timeout)

    outcome = run(settings, work)
    if outcome == "timeout":
        raise TimedOut(f"not {condition} after {timeout:g} s", hint="kserve-local status")
    if outcome == "failed":
        raise ServiceUnavailable("a service failed", hint="kserve-local status")
    if flags.as_json:
        out.envelope({"outcome": outcome})
    return 0


async def _gone(client: object, names: set[tuple[str, str]], patience: float) -> str:
    """Wait until none of the services is there any more."""
    import asyncio

    from kserve_local.api import scheme
    from kserve_local.api.meta import name_of, namespace_of
    from kserve_local.client.client import Client

    assert isinstance(client, Client)
    left = set(names)
    try:
        async with asyncio.timeout(patience):
            found, version = await client.list_at(scheme.INFERENCE_SERVICE)
            left &= {(namespace_of(isvc), name_of(isvc)) for isvc in found}
            stream = client.watch(scheme.INFERENCE_SERVICE, since=version)
            async with aclosing(stream) as events:
                while left:
                    event = await anext(events)
                    if event.type == "DELETED":
                        left.discard((namespace_of(event.object), name_of(event.object)))
    except TimeoutError:
        return "timeout"
    return "deleted"
