"""`kserve-local completion SHELL`: the script that click's completion needs."""

from __future__ import annotations

import click

from kserve_local.cli.options import Common, common
from kserve_local.errors import Missing


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish", "powershell"]))
@common
def command(flags: Common, shell: str) -> int:
    """Print a completion script for SHELL.

    bash: add `source <(kserve-local completion bash)` to ~/.bashrc. powershell needs click 8.5.
    """
    from click.shell_completion import get_completion_class

    from kserve_local.cli.main import cli

    found = get_completion_class(shell)
    if found is None:
        raise Missing(f"the installed click has no completion for {shell}: click 8.5 has")
    completer = found(cli, {}, "kserve-local", "_KSERVE_LOCAL_COMPLETE")
    script = completer.source()
    if shell == "bash":
        # The alias completes, too.
        script += "complete -o nosort -F _kserve_local_completion kl\n"
    out = flags.output("completion")
    if flags.as_json:
        out.envelope({"shell": shell, "script": script})
    else:
        out.data(script)
    return 0
