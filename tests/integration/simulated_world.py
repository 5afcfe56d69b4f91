"""One trace, run for real and simulated: the number of replicas over time of both.

Real time is that of a project whose autoscaler's clock runs `speed` times as fast; all times here
are in seconds of that clock, from the first one of the trace.
"""

from __future__ import annotations

import asyncio
import contextlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

from kserve_local import settings
from kserve_local.api import pod_autoscaler, scheme
from kserve_local.autoscaler.kpa import TICK
from kserve_local.cli.session import connected
from kserve_local.controllers.standins import known
from kserve_local.project.project_files import load_project
from kserve_local.simulator.durations import Distribution
from kserve_local.simulator.load import Load
from kserve_local.simulator.service import service_of, terms_of
from kserve_local.simulator.simulation import simulate
from kserve_local.simulator.trace import Trace
from tests.integration.project import Project
from tests.integration.traffic_world import service, sleeper, write

NAME = "followed"
DURATION = 180.0
PLATEAUS = ((10.0, 40.0, 2), (50.0, 40.0, 6), (90.0, 40.0, 1))
"""Start, length and height: so many requests come at the start, and all take the length."""
CALLS = tuple((start, length) for start, length, count in PLATEAUS for _ in range(count))
"""Arrival and work of each request."""
_PHASES = tuple(i / 10 for i in range(20))
"""Where between two ticks the trace may have begun; nobody can know."""

Steps = Sequence[tuple[float, int]]
"""Time, replicas from then on; the first one holds before, too."""


@dataclass(frozen=True)
class Recording:
    """What was seen.

    Args:
        steps: The autoscaler's number of replicas.
        statuses: Of the answers.
        cold: How long the first request waited.
        stalled: How long at most this machine kept us from doing what was due.
    """

    steps: Steps
    statuses: tuple[int, ...]
    cold: float
    stalled: float


def write_project(folder: Path, speed: float) -> None:
    """Write the project: one service, from zero, two requests a replica.

    Five replicas at most, which the stable window wants, too: so the end of panic, which hangs on
    how long each replica took to start, is no step.
    """
    own = service(
        NAME,
        sleeper(minReplicas=0, maxReplicas=5, scaleTarget=2),
        {"autoscaling.knative.dev/window": "20s"},
    )
    write(folder, own, speed=speed)


def record(project: Project, speed: float) -> Recording:
    """Play the trace to the running project, whose service is at zero."""
    return asyncio.run(_record(project, speed))


async def _record(project: Project, speed: float) -> Recording:
    steps: list[tuple[float, int]] = []
    late = [0.0]
    begun = monotonic() + 1.0

    def now() -> float:
        return (monotonic() - begun) * speed

    async def until(due: float) -> None:
        await asyncio.sleep((due - now()) / speed)
        late.append(now() - due)

    async def follow() -> None:
        async with (
            connected(settings.load(project.folder)) as client,
            contextlib.aclosing(
                client.watch(scheme.POD_AUTOSCALER, namespace="default")
            ) as changes,
        ):
            async for change in changes:
                replicas = pod_autoscaler.replicas(change.object)
                if not steps or steps[-1][1] != replicas:
                    steps.append((now(), replicas))

    async def watch_the_clock() -> None:
        while True:
            await until(now() + 0.02 * speed)

    at = urlsplit(project.gateway)

    async def ask(arrival: float, work: float) -> tuple[int, float]:
        await until(arrival)
        sent = now()
        reader, writer = await asyncio.open_connection(at.hostname, at.port)
        try:
            head = f"POST /?s={work / speed} HTTP/1.1\r\nHost: {NAME}.default.example.com\r\n"
            writer.write(f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
        finally:
            writer.close()
        return int(answer.split(b" ", 2)[1]), now() - sent - work

    async with asyncio.TaskGroup() as tasks:
        helpers = [tasks.create_task(follow()), tasks.create_task(watch_the_clock())]
        asked = [tasks.create_task(ask(*call)) for call in CALLS]
        answers = [await task for task in asked]
        await until(DURATION)
        for helper in helpers:
            helper.cancel()
    return Recording(steps, tuple(status for status, _ in answers), answers[0][1], max(late))


def simulated(project: Project, cold: float) -> list[Steps]:
    """Return what the simulator makes of the project and the trace, for each phase."""
    of_project = settings.load(project.folder)
    terms = terms_of(
        service_of(load_project(of_project, known(of_project.images)).objects, NAME, None)
    )
    found: list[Steps] = []
    for phase in _PHASES:
        trace = Trace(
            array("d", (start + phase for start, _ in CALLS)),
            array("d", (work for _, work in CALLS)),
            None,
            DURATION + phase,
        )
        run = simulate(
            terms,
            Load(DURATION + phase, trace=trace),
            Distribution("", "constant", (cold,)),
            held=of_project.max_held_requests,
            from_zero=True,
        )
        found.append([(c.time - phase, c.replicas) for c in run.changes if not c.time or c.is_step])
    return found


def differ(one: Steps, other: Steps, apart: float) -> list[str]:
    """Return where two step functions differ by more than a shift of `apart` explains.

    At each moment one must lie between the least and the most that the other has within `apart`.
    """
    moments = sorted({t for t, _ in (*one, *other)})
    problems = []
    for first, second, name in ((one, other, "real"), (other, one, "simulated")):
        for moment in [m for a, b in pairwise([*moments, DURATION]) for m in (a, (a + b) / 2)]:
            value = _at(first, moment)
            near = [_at(second, moment - apart), _at(second, moment + apart)]
            near += [n for t, n in second if abs(t - moment) <= apart]
            if not min(near) <= value <= max(near):
                problems.append(f"at {moment:.1f} {name} {value}, the other {sorted(set(near))}")
    return problems


def _at(steps: Steps, time: float) -> int:
    return next((n for t, n in reversed(steps) if t <= time), steps[0][1])


def compare(project: Project, speed: float) -> None:
    """Play the trace for real and simulated.

    Raises:
        AssertionError: The steps are more than a tick apart, apart from what the machine stalled.
    """
    real = record(project, speed)
    assert set(real.statuses) == {200}
    assert len(real.steps) > 5
    apart = TICK + real.stalled
    tries = [differ(real.steps, steps, apart) for steps in simulated(project, real.cold)]
    best = min(tries, key=len)
    told = "\n".join(f"{t:7.1f} {n}" for t, n in real.steps)
    assert not best, (
        f"real (cold start {real.cold:.1f} s, stalled {real.stalled:.1f} s):\n{told}\n"
        f"simulated: {simulated(project, real.cold)[tries.index(best)]}\n" + "\n".join(best)
    )
