"""`kserve-local version`: ours and those of what we stand on."""

from __future__ import annotations

import platform
from importlib import metadata

import click

from kserve_local import __version__
from kserve_local.cli.options import Common, common


@click.command("version")
@common
def command(flags: Common) -> int:
    """Print versions."""
    packages = {}
    for name in ("kserve-local-runtimes", "uvicorn", "fastapi", "kserve"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    out = flags.output("version")
    if flags.as_json:
        out.envelope(
            {
                "version": __version__,
                "kserve": "0.20",
                "python": platform.python_version(),
                "platform": platform.platform(),
                "packages": packages,
            }
        )
        return 0
    out.data(f"kserve-local {__version__} (KServe 0.20 rules), Python {platform.python_version()}")
    if flags.verbose:
        for name, version in packages.items():
            out.data(f"{name} {version}")
    return 0
