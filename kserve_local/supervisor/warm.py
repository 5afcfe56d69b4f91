"""Zygotes ahead of need: the runtimes that a project's YAML names start importing before the store
is even open, so that the first Pod finds its warm parent.
"""

from __future__ import annotations

from collections.abc import Sequence

from kserve_local.backends.process import ProcessBackend
from kserve_local.controllers.standins import PRELOAD
from kserve_local.interfaces.backend import ContainerSpec, Program
from kserve_local.settings import Settings


async def warm_runtimes(
    backend: ProcessBackend, runtimes: Sequence[str], settings: Settings
) -> None:
    """Start a zygote for each of our servers named; unknown names are left alone.

    Where every Pod is a container, nobody would fork from one.
    """
    if settings.backend == "docker" and not settings.needs("process"):
        return
    for runtime in runtimes:
        if runtime not in PRELOAD:
            continue
        program = Program(kind="runtime", runtime=runtime, argv=(), preload=PRELOAD[runtime])
        await backend.warm(
            ContainerSpec(
                name="warm",
                image=runtime,
                argv=(),
                log_path=settings.log_dir / "zygote.log",
                program=program,
            )
        )
