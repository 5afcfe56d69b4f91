"""`kserve-local kubectl ARGS`: the user's own kubectl, pointed at this project."""

from __future__ import annotations

import os
import shutil

import click

from kserve_local.cli.options import Common, common
from kserve_local.errors import Missing


# From the first word on everything is kubectl's, `-o yaml` and `--help` too.
@click.command(
    "kubectl", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@common
def command(flags: Common, args: tuple[str, ...]) -> int:
    """Run kubectl with ARGS against the running project."""
    from kserve_local.client.project import need_running

    settings = flags.settings_of_running()
    need_running(settings)
    found = shutil.which("kubectl")
    if found is None:
        raise Missing(
            "kubectl is not installed",
            hint="kserve-local get, apply, delete, logs and events work without it",
        )
    namespace = ["--namespace", flags.namespace] if flags.namespace else []
    os.execve(
        found, [found, *namespace, *args], {**os.environ, "KUBECONFIG": str(settings.kubeconfig)}
    )
