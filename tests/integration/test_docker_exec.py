"""Exec probes in containers: one that hangs costs itself only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kserve_local.backends.docker import DockerBackend
from kserve_local.backends.docker_engine import THREADS
from kserve_local.backends.probes import ProbeFailed, check
from kserve_local.interfaces.backend import Probe
from kserve_local.settings import Settings
from tests.integration.docker_world import containers, docker, project_settings, replica

pytestmark = pytest.mark.docker

IDLE = ("python3", "-c", "import time; time.sleep(600)")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "model").mkdir()
    return project_settings(tmp_path, standby=False)


@pytest.fixture
async def backend(settings: Settings) -> AsyncIterator[DockerBackend]:
    backend = await DockerBackend.open(settings)
    yield backend
    await backend.close(stop_replicas=True)
    assert containers(settings) == []


async def test_probes_that_hang_hold_up_nothing_else_and_leave_no_process(
    backend: DockerBackend, settings: Settings
) -> None:
    """As many at a time as the engine has threads for calls."""
    hang = ("sh", "-c", "sleep 601 & sleep 602")
    probe = Probe("exec", command=hang, timeout=0.5, period=0.1)
    names = [f"p{n}" for n in range(3)]
    for name in names:
        await backend.start(
            replica(settings, name, command=IDLE, argv=IDLE, readiness=probe, liveness=None)
        )
    targets = [c.target() for c in backend._by_container.values()]

    slow = Probe("exec", command=hang, timeout=5.0)
    checks = [asyncio.create_task(check(slow, targets[n % 3])) for n in range(THREADS + 2)]
    await asyncio.sleep(2.0)
    await backend._engine.call("ping")
    assert not any(check.done() for check in checks), "the engine answered after one of them"
    told = await asyncio.gather(*checks, return_exceptions=True)
    assert {type(error) for error in told} == {ProbeFailed}
    assert 'command "sh -c sleep 601 & sleep 602" timed out' in str(told[0])
    # All that is left is what runs this moment: one probe at a time for each.
    for container in list(backend._by_container.values()):
        await container.leave()
    await asyncio.sleep(0.5)
    for container in backend._by_container.values():
        left = docker("top", container.id, "-o", "pid,args")
        assert "sleep 60" not in left.replace("sleep(600)", ""), left


async def test_an_exec_probe_tells_its_exit_code_and_output(
    backend: DockerBackend, settings: Settings
) -> None:
    await backend.start(replica(settings, "a", command=IDLE, argv=IDLE, readiness=None))
    [container] = backend._by_container.values()
    run = container.target().run
    assert run is not None
    assert await run(("sh", "-c", "echo out; echo err >&2; exit 3")) in (
        (3, b"out\nerr\n"),
        (3, b"err\nout\n"),
    )
    code, output = await run(("sh", "-c", "yes | head -c 100000"))
    assert (code, len(output)) == (0, 10_240)
    assert (await run(("true",))) == (0, b"")
    code, output = await run(("/no/such",))
    assert code != 0
    assert b"no such file" in output
