"""`kserve-local apply -f`: create or update objects in the running project."""

from __future__ import annotations

from typing import Any

import click

from kserve_local.cli.options import Common, common
from kserve_local.errors import Invalid, UsageError


@click.command("apply")
@click.option("--dry-run", is_flag=True, help="Run admission, change nothing.")
@common
def command(flags: Common, dry_run: bool) -> int:
    """Apply the files named with -f (a file, a folder, - for stdin)."""
    from kserve_local.api.meta import name_of
    from kserve_local.cli.get import name_of_object
    from kserve_local.cli.session import run
    from kserve_local.client.client import Client
    from kserve_local.controllers.standins import known
    from kserve_local.project.project_files import load_project

    if not flags.files:
        raise UsageError("which files?", hint="kserve-local apply -f FILE")
    settings = flags.settings()
    project = load_project(settings, known(settings.images))
    errors = project.errors()
    if errors:
        raise Invalid("\n".join(errors))
    out = flags.output("apply")
    warnings: list[str] = [*project.warnings()]
    for text in warnings:
        out.say(text, fg="yellow")
    done: list[dict[str, Any]] = []

    async def work(client: Client) -> None:
        for obj in project.objects:
            applied, what = await client.apply(obj, dry_run=dry_run)
            done.append({"kind": applied["kind"], "name": name_of(applied), "result": what})
            if not flags.as_json:
                suffix = " (dry run)" if dry_run else ""
                out.data(f"{name_of_object(applied)} {what}{suffix}")

    run(settings, work, lambda text: out.say(f"warning: {text}", fg="yellow"))
    if flags.as_json:
        out.envelope({"objects": done}, warnings=warnings)
    return 0
