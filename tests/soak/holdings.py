"""What a project's processes hold: memory, descriptors, connections, children; what has grown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import psutil

from tests.integration.project import Project
from tests.soak import api

SHARE, BYTES = 0.15, 10 * 2**20
"""Memory may grow by both together."""
DESCRIPTORS = 10
SNAPSHOTS = 6
"""Of model files that are kept: one in use of each place, and those of Pods that are ending."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the project's processes hold.

    Args:
        of: Resident bytes.
        descriptors: Without connections, of which there are as many as calls came at once.
        lost: The gateway's connections to Pods that are gone.
    """

    of: dict[str, int]
    descriptors: dict[str, int]
    lost: int
    processes: int
    zombies: int

    def told(self) -> str:
        sizes = ", ".join(f"{name} {size / 2**20:.0f}" for name, size in self.of.items())
        files = ", ".join(f"{name} {count}" for name, count in self.descriptors.items())
        return f"{sizes} MiB; descriptors: {files}; {self.processes} processes"


def processes(project: Project) -> set[psutil.Process]:
    """Return the processes of a project, replicas that were forked and zombies among them."""
    family = set()
    for pid in project.leftovers():
        process = psutil.Process(pid)
        family |= {process, *process.children(recursive=True)}
    return family


def measure(project: Project, served: Mapping[str, int], *, extra: int) -> Holdings:
    """Return what the project's processes hold now.

    Args:
        served: The process of each service.
        extra: How many processes there are for what was saved, beside those of the beginning.
    """
    run = project.run_file
    parts = {"supervisor": int(run["pid"]), "gateway": int(run["gateway"]["pid"])}
    own = {name: psutil.Process(pid) for name, pid in parts.items()}
    family = processes(project)
    zombies = sum(p.status() == psutil.STATUS_ZOMBIE for p in family)
    pods = api.call(project, "GET", "/api/v1/pods")["items"]
    there = {"127.0.0.1", *(pod["status"].get("podIP") for pod in pods)}
    peers = [c.raddr.ip for c in own["gateway"].connections("inet") if c.raddr]
    return Holdings(
        {n: int(psutil.Process(pid).memory_info().rss) for n, pid in {**parts, **served}.items()},
        {name: p.num_fds() - len(p.connections("inet")) for name, p in own.items()},
        sum(peer.startswith("127.") and peer not in there for peer in peers),
        len(family) - zombies - extra,
        zombies,
    )


def grown(early: Holdings, end: Holdings, project: Project) -> Iterator[str]:
    """Yield what has grown more than it may, and what is left that nobody needs."""
    for name, size in end.of.items():
        before = early.of[name]
        if size > before * (1 + SHARE) + BYTES:
            yield f"{name} grew from {before >> 20} to {size >> 20} MiB"
    for name, count in end.descriptors.items():
        if count > early.descriptors[name] + DESCRIPTORS:
            yield f"{name} had {early.descriptors[name]} descriptors, now {count}"
    if end.processes > early.processes:
        yield f"there were {early.processes} processes, now {end.processes}"
    if end.lost:
        yield f"the gateway has {end.lost} connections to Pods that are gone"
    if end.zombies:
        yield f"{end.zombies} processes ended that nobody waited for"
    kept = list((project.state / "models").glob("*"))
    if len(kept) > SNAPSHOTS:
        yield f"{len(kept)} snapshots of model files are kept"
