"""`kserve-local down`: stop everything this project runs; safe to call at any time."""

from __future__ import annotations

import click

from kserve_local.cli.options import Common, Duration, common


@click.command("down")
@click.argument("directory", required=False, type=click.Path())
@click.option("--volumes", is_flag=True, help="Also delete the project's state and logs.")
@click.option(
    "--all", "everywhere", is_flag=True,
    help="Also remove containers of projects whose folder is gone.",
)  # fmt: skip
@click.option(
    "--grace", type=Duration(), default="40s", help="Time for running requests and processes."
)
@common
def command(
    flags: Common, directory: str | None, volumes: bool, everywhere: bool, grace: float
) -> int:
    """Stop gateway, replicas and supervisor. Keeps cache and state; says what it did."""
    from dataclasses import replace
    from pathlib import Path

    from kserve_local.cli.launch import stop_supervisor
    from kserve_local.supervisor import statedir

    if directory is not None:
        flags = replace(flags, project=Path(directory))
    settings = flags.settings_of_running()
    out = flags.output("down")
    stopped = False
    if settings.state.is_dir():
        stopped = stop_supervisor(settings, grace=grace, say=out.say)
    if volumes and settings.state.is_dir():
        statedir.remove_state(settings)
        out.say(f"deleted {settings.state}")
    orphans = _remove_orphans() if everywhere else []
    for folder in orphans:
        out.say(f"removed containers of {folder}")
    if flags.as_json:
        out.envelope({"stopped": stopped, "deleted": volumes, "orphans": orphans})
    else:
        out.say(f"{settings.name} stopped" if stopped else f"{settings.name} was not running")
    return 0


def _remove_orphans() -> list[str]:
    import asyncio

    from kserve_local.backends.docker import remove_orphans

    return asyncio.run(remove_orphans())
