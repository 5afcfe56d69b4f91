"""What a killed supervisor leaves behind, found by run files and ended: `down` after `kill -9`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from kserve_local import procs
from kserve_local.backends import runfiles
from kserve_local.client.project import GATEWAY_FILE, RUN_FILE
from kserve_local.controllers.addresses import AddressPool
from kserve_local.errors import Missing
from kserve_local.settings import Settings
from kserve_local.supervisor import statedir


def has_survivors(settings: Settings) -> bool:
    """Whether run files name a gateway, replicas or zygotes that may still run."""
    return (
        (settings.run_dir / GATEWAY_FILE).exists()
        or any((settings.run_dir / "pods").glob("*"))
        or any((settings.run_dir / "containers").glob("*"))
        or any((settings.run_dir / "zygotes").glob("*.json"))
    )


def left_to_end(settings: Settings) -> str:
    """Return which Pods still end, and how long they may take; empty: none, or nobody can tell."""
    found: dict[str, float] = {}
    for kind in ("pods", "containers"):
        for path in sorted((settings.run_dir / kind).glob("*/.replica.json")):
            spec = runfiles.read(path)
            with suppress(KeyError, TypeError, ValueError):
                found[str(spec["pod"])] = float(spec["grace"])
    return ", ".join(f"{pod} (up to {grace:g} s)" for pod, grace in found.items())


def has_leftovers(settings: Settings) -> bool:
    """Whether anything is left that a clean stop would have taken away."""
    return (
        has_survivors(settings)
        or (settings.run_dir / RUN_FILE).exists()
        or settings.runtime.exists()
    )


def remove(settings: Settings, *, grace: float) -> None:
    """End everything that run files name, then remove those files.

    Raises:
        PortTaken: A supervisor runs; it is the one to ask.
    """
    from kserve_local.backends.group import stop_everything

    statedir.prepare(settings)
    lock = statedir.Lock(settings)
    try:
        _end_gateway(settings.run_dir / GATEWAY_FILE, grace)
        asyncio.run(stop_everything(settings, grace=grace))
        statedir.remove_volumes(settings)
        with suppress(Missing):
            AddressPool(settings.state, settings.cache).close(give_up=True)
        statedir.remove_run_file(settings)
        statedir.remove_runtime(settings)
    finally:
        lock.release()


def _end_gateway(run_file: Path, grace: float) -> None:
    try:
        data = json.loads(run_file.read_bytes())
        gateway = procs.Identity(int(data["pid"]), float(data["start_time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return
    if procs.send_signal(gateway, signal.SIGTERM if grace else signal.SIGKILL):
        end = time.monotonic() + grace
        while procs.alive(gateway) and time.monotonic() < end:
            time.sleep(0.01)
        procs.send_signal(gateway, signal.SIGKILL)
        _reap(gateway)
    run_file.unlink(missing_ok=True)


def _reap(gateway: procs.Identity) -> None:
    while procs.alive(gateway):
        with suppress(ChildProcessError):
            os.waitpid(gateway.pid, os.WNOHANG)
        time.sleep(0.002)
