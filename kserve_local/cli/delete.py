"""`kserve-local delete`: objects by name, or those of the files named with -f."""

from __future__ import annotations

import click

from kserve_local.cli.options import Common, common
from kserve_local.errors import NotFound, UsageError


@click.command("delete")
@click.argument("resource", required=False)
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All objects of the resource.")
@click.option("--ignore-not-found", is_flag=True)
@common
def command(
    flags: Common,
    resource: str | None,
    names: tuple[str, ...],
    everything: bool,
    ignore_not_found: bool,
) -> int:
    """Delete RESOURCE NAME..., RESOURCE/NAME, RESOURCE --all, or what -f names."""
    from kserve_local.api import scheme
    from kserve_local.api.meta import name_of
    from kserve_local.cli.get import singular
    from kserve_local.cli.session import resource_named, run
    from kserve_local.client.client import Client
    from kserve_local.controllers.standins import known
    from kserve_local.project.project_files import load_project

    settings = flags.settings_of_running()
    namespace = flags.namespace or settings.namespace
    targets: list[tuple[str, str, str]] = []
    if resource is not None:
        kind_id, inside = resource_named(resource)
        wanted = [inside, *names] if inside else [*names]
        if not wanted and not everything:
            raise UsageError("which objects?", hint=f"kserve-local delete {resource} NAME | --all")
        targets = [(kind_id, namespace, n) for n in wanted]
    elif flags.files:
        for obj in reversed(load_project(settings, known(settings.images)).objects):
            where = str(obj["metadata"].get("namespace") or "")
            targets.append((scheme.of(obj).id, where, name_of(obj)))
    else:
        raise UsageError("what?", hint="kserve-local delete isvc NAME   or   delete -f FILE")
    out = flags.output("delete")
    deleted: list[str] = []

    async def work(client: Client) -> None:
        todo = targets
        if everything and resource is not None:
            kind = scheme.BY_ID[resource_named(resource)[0]]
            found = await client.list(kind, namespace=namespace if kind.namespaced else None)
            todo = [(kind.id, namespace, name_of(o)) for o in found]
        for kind_id, where, name in todo:
            try:
                await client.delete(scheme.BY_ID[kind_id], name, where or None)
            except NotFound:
                if not ignore_not_found:
                    raise
                continue
            deleted.append(f"{kind_id}/{name}")
            if not flags.as_json:
                out.data(f'{singular(scheme.BY_ID[kind_id])} "{name}" deleted')

    run(settings, work)
    if flags.as_json:
        out.envelope({"deleted": deleted})
    return 0
