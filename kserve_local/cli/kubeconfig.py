"""`kserve-local kubeconfig`: the kubeconfig of the running project, or where it lies."""

from __future__ import annotations

import click

from kserve_local.cli.options import Common, common


@click.command("kubeconfig")
@click.option("--path", "only_path", is_flag=True, help="Print the file's path instead.")
@common
def command(flags: Common, only_path: bool) -> int:
    """Print the kubeconfig (or its path) for kubectl and the KServe SDK.

    export KUBECONFIG=$(kserve-local kubeconfig --path)
    """
    from kserve_local.client.project import need_running

    settings = flags.settings_of_running()
    need_running(settings)
    out = flags.output("kubeconfig")
    if flags.as_json:
        out.envelope({"path": str(settings.kubeconfig)})
    elif only_path:
        out.data(str(settings.kubeconfig))
    else:
        out.data(settings.kubeconfig.read_text().rstrip("\n"))
    return 0
