"""Who outlives whom in the process backend: supervisors, zygotes, replicas, the state folder."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import venv
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from kserve_local.backends import processes
from kserve_local.backends.container import zygote_key
from kserve_local.backends.group import stop_everything
from kserve_local.backends.process import ProcessBackend
from kserve_local.errors import Missing
from kserve_local.interfaces.backend import ContainerSpec, Progress
from tests.integration.process_world import (
    Project,
    get,
    is_running,
    next_event,
    until_dead,
)

SERVE = """
import http.server, os, sys


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "p")
    made.write("serve.py", SERVE)
    return made


@pytest.fixture(params=["zygote", "process"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def container(project: Project, how: str, **more: object) -> ContainerSpec:
    preload = ("http.server",) if how == "zygote" else ()
    return project.container("serve.py", preload=preload, **more)


def zygote_files(project: Project) -> list[Path]:
    return sorted((project.settings.run_dir / "zygotes").glob("*.json"))


def zygote_pids(project: Project) -> list[int]:
    return [json.loads(path.read_text())["pid"] for path in zygote_files(project)]


async def test_a_zygotes_death_costs_no_replica_and_a_new_one_is_made(project: Project):
    async with project.backend() as backend:
        await backend.start(project.replica(container(project, "zygote")))
        first = (await next_event(backend, "ready")).status
        [zygote] = zygote_pids(project)
        os.kill(zygote, signal.SIGKILL)
        await until_dead(zygote)
        assert await get(first, "/") == first.containers[0].pid

        await backend.start(project.replica(container(project, "zygote")))
        second = (await next_event(backend, "ready")).status
        assert second.containers[0].started_how == "zygote"
        assert zygote_pids(project) != [zygote]

        pid = first.containers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        exited = await next_event(backend, "exited", id=first.id)
        assert exited.status.containers[0].reason == "Unknown"
        assert exited.status.containers[0].exit_code is None


async def test_a_fork_that_was_given_up_leaves_by_itself(project: Project):
    """The run file is a pipe here: the zygote reads one token from it, its fork another."""
    async with project.backend() as backend:
        spec = container(project, "zygote")
        await backend.start(project.replica(spec))
        status = (await next_event(backend, "ready")).status
        folder = project.settings.run_dir / "pods" / status.id
        launch = json.loads((folder / "kserve-container.json").read_text())
        pipe = project.code / "pipe"
        os.mkfifo(pipe)
        key = zygote_key(spec, spec.program, Path(sys.executable))
        assert key is not None
        zygote = backend._around.zygotes.get(key)
        fork = asyncio.create_task(zygote.fork(pipe))
        await asyncio.to_thread(pipe.write_text, json.dumps({**launch, "token": "1" * 32}))
        pid, start = await fork
        await asyncio.to_thread(pipe.write_text, json.dumps({**launch, "token": "2" * 32}))
        exited = await zygote.exit_of(pid, start, within=20)
        assert exited is not None
        assert exited.code == 0
        assert json.loads((folder / "kserve-container.json").read_text()) == launch


@pytest.mark.parametrize("seed", range(4))
async def test_a_zygote_killed_while_it_forks_costs_no_start(project: Project, seed: int):
    chance = random.Random(seed)
    async with project.backend() as backend:
        spec = container(project, "zygote")
        await backend.start(project.replica(spec))
        await next_event(backend, "ready")
        replicas = [project.replica(spec) for _ in range(5)]
        starts = [asyncio.create_task(backend.start(replica)) for replica in replicas]
        await asyncio.sleep(chance.uniform(0, 0.03))
        for pid in zygote_pids(project):
            os.kill(pid, signal.SIGKILL)
        await asyncio.gather(*starts)
        ready = set()
        while len(ready) < len(replicas):
            event = await next_event(backend, "ready", "exited")
            assert event.kind == "ready", event
            ready.add(event.id)
        marks = await asyncio.to_thread(processes.marked)
        for status in await backend.list():
            [found] = status.containers
            token = processes.mark_of(found.pid or 0)
            assert marks[token] == [found.pid]


async def test_a_normal_end_is_known_even_without_its_zygote(project: Project):
    """The launcher writes the code down itself."""
    flag = project.code / "flag"
    project.write(
        "waits.py",
        f"import os, sys, time\nwhile not os.path.exists({str(flag)!r}): time.sleep(0.02)\n"
        "sys.exit(5)\n",
    )
    waits = project.container("waits.py", preload=("json",), readiness=None)
    async with project.backend() as backend:
        await backend.start(project.replica(waits))
        await next_event(backend, "ready")
        os.kill(zygote_pids(project)[0], signal.SIGKILL)
        await until_dead(*zygote_pids(project))
        flag.touch()
        [status] = (await next_event(backend, "exited")).status.containers
        assert (status.exit_code, status.reason) == (5, "Error")


async def test_a_zygote_with_a_thread_is_not_forked(project: Project):
    project.write(
        "threaded.py",
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n",
    )
    spec = project.container(
        "serve.py", preload=("threaded",), env=(("PYTHONPATH", str(project.code)),)
    )
    async with project.backend() as backend:
        await backend.start(project.replica(spec))
        [status] = (await next_event(backend, "ready")).status.containers
        assert status.started_how == "process"
        assert status.note == "started without a zygote: the zygote has 2 threads"


async def test_a_preload_that_fails_means_a_plain_start(project: Project):
    async with project.backend() as backend:
        spec = project.container("serve.py", preload=("no_such_module",))
        await backend.start(project.replica(spec))
        [status] = (await next_event(backend, "ready")).status.containers
        assert status.started_how == "process"
        assert "No module named 'no_such_module'" in status.note


async def test_code_that_shadows_a_preloaded_module_is_started_plainly(project: Project):
    project.write("json.py", "MINE = True\n")
    project.write("shadow.py", "import json\nassert json.MINE\n" + SERVE)
    async with project.backend() as backend:
        spec = project.container("shadow.py", preload=("json",))
        await backend.start(project.replica(spec))
        [status] = (await next_event(backend, "ready", "exited")).status.containers
        assert (status.state, status.started_how) == ("running", "process"), project.log()
        assert f"{project.code} has its own json" in status.note


async def test_import_time_environment_has_its_own_zygote(project: Project):
    async with project.backend() as backend:
        for env in ((), (("MY_OWN", "1"),), (("HF_HOME", "/x"),)):
            await backend.start(project.replica(container(project, "zygote", env=env)))
            await next_event(backend, "ready")
        assert len(zygote_files(project)) == 2


async def test_warming_up_starts_a_zygote_that_the_first_start_uses(project: Project):
    async with project.backend() as backend:
        spec = container(project, "zygote")
        await backend.warm(spec)
        [file] = zygote_files(project)
        token = json.loads(file.read_text())["token"]
        await backend.start(project.replica(spec))
        assert (await next_event(backend, "ready")).status.containers[0].started_how == "zygote"
        assert json.loads(file.read_text())["token"] == token


SUPERVISOR = """
import asyncio, pickle, sys
from kserve_local.backends.process import ProcessBackend


async def main():
    settings, replicas = pickle.load(open(sys.argv[1], "rb"))
    backend = await ProcessBackend.open(settings)
    print("open", flush=True)
    for replica in replicas:
        await backend.start(replica)
        print("started", replica.id, flush=True)
    await asyncio.sleep(600)


asyncio.run(main())
"""


class Supervisor:
    """A backend in a process of its own, to be killed."""

    def __init__(self, project: Project, *replicas: object) -> None:
        import pickle

        spec = project.code / "supervisor.pickle"
        spec.write_bytes(pickle.dumps((project.settings, replicas)))
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, str(spec)], stdout=subprocess.PIPE
        )

    async def line(self) -> str:
        assert self.process.stdout is not None
        line: bytes = await asyncio.to_thread(self.process.stdout.readline)
        return line.decode().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


async def test_a_killed_supervisor_leaves_its_replicas_to_the_next(project: Project, how: str):
    replica = project.replica(container(project, how))
    supervisor = Supervisor(project, replica)
    assert await supervisor.line() == "open"
    assert (await supervisor.line()).startswith("started")
    supervisor.kill()
    async with project.backend() as backend:
        [status] = await backend.list()
        assert status.adopted
        event = await next_event(backend, "ready", "exited")
        assert await get(event.status, "/") == status.containers[0].pid
        assert event.status.containers[0].started_how == how
        # The zygote was adopted too: no second one, and it still tells how a replica ends.
        assert len(zygote_pids(project)) == (1 if how == "zygote" else 0)
        pid = status.containers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        [ended] = (await next_event(backend, "exited")).status.containers
        assert ended.reason == ("Error" if how == "zygote" else "Unknown")


@pytest.mark.parametrize("seed", range(4))
async def test_a_supervisor_killed_in_the_middle_of_starting_leaves_no_orphan(
    project: Project, how: str, seed: int
):
    """Whatever was begun is found again, or was never begun."""
    replicas = [project.replica(container(project, how)) for _ in range(3)]
    supervisor = Supervisor(project, *replicas)
    assert await supervisor.line() == "open"
    await asyncio.sleep(random.Random(seed).uniform(0.0, 0.25))
    supervisor.kill()
    await stop_everything(project.settings, grace=0.0)
    assert not list((project.settings.run_dir / "pods").glob("*"))
    state = str(project.settings.state).encode()
    left = [pid for pids in processes.marked().values() for pid in pids if _mentions(pid, state)]
    assert left == []


def _mentions(pid: int, text: bytes) -> bool:
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        return text in environ + Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"])


async def test_another_process_with_a_recorded_pid_is_not_adopted(project: Project):
    async with project.backend() as backend:
        await backend.start(project.replica(container(project, "process")))
        status = (await next_event(backend, "ready")).status
        await backend.close(stop_replicas=False)
        file = project.settings.run_dir / "pods" / status.id / "kserve-container.json"
        stranger = _sleeper()
        try:
            real = json.loads(file.read_text())
            start = processes.start_time(stranger.pid)
            fake = {**real, "pid": stranger.pid, "start_time": start}
            file.write_text(json.dumps(fake))
            second = await ProcessBackend.open(project.settings)
            [found] = await second.list()
            assert found.containers[0].state == "terminated"
            await second.stop(status.id, grace=0.0)
            assert is_running(stranger.pid)
            await until_dead(status.containers[0].pid)
            await second.close(stop_replicas=True)
        finally:
            stranger.kill()
            stranger.wait()


async def test_everything_ends_when_the_state_folder_vanishes(project: Project):
    python = project.replica(container(project, "zygote"))
    command = project.replica(project.container("sleep", "600", is_python=False, readiness=None))
    plain = project.replica(container(project, "process"))
    backend = await ProcessBackend.open(project.settings)
    for replica in (python, plain, command):
        await backend.start(replica)
        await next_event(backend, "ready", id=replica.id)
    pids = [c.pid for status in await backend.list() for c in status.containers]
    pids += zygote_pids(project)
    await backend.close(stop_replicas=False)
    shutil.rmtree(project.settings.state)
    await until_dead(*pids)
    for pid in pids:
        if pid is not None:
            processes.reap(pid)


async def test_a_container_may_have_used_its_memory_in_children(project: Project):
    project.write(
        "fills.py",
        "import os, time\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        held = bytearray(os.urandom(1 << 20) * 48)\n"
        "        time.sleep(600)\n"
        "time.sleep(600)\n",
    )
    spec = project.container("fills.py", readiness=None, memory_limit_bytes=100 << 20)
    async with project.backend() as backend:
        await backend.start(project.replica(spec))
        [status] = (await next_event(backend, "exited")).status.containers
        assert (status.reason, status.exit_code) == ("OOMKilled", 137)
        assert "approximate" in status.note


async def test_a_chatty_container_keeps_its_log_small(project: Project):
    project = _with(project, log_max_bytes=20_000, log_files=2)
    project.write(
        "chatty.py",
        "import time\nn = 0\nwhile True:\n    print('line', n := n + 1)\n    time.sleep(0.0002)\n",
    )
    async with project.backend() as backend:
        spec = project.container("chatty.py", readiness=None)
        await backend.start(project.replica(spec))
        log = spec.log_path
        async with asyncio.timeout(60):
            while not log.with_name(f"{log.name}.2").exists():  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(0.05)
        names = sorted(path.name for path in log.parent.iterdir())
        assert names == [log.name, f"{log.name}.1", f"{log.name}.2"]
        assert "line" in log.with_name(f"{log.name}.1").read_text()


def _with(project: Project, **changes: object) -> Project:
    project.settings = replace(project.settings, **changes)  # type: ignore[arg-type]  # shorthand
    return project


def wheel(folder: Path) -> Path:
    """Make a tiny distribution, so that pip needs no index."""
    path = folder / "tinything-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tinything.py", "ANSWER = 42\n")
        info = "tinything-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinything\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(
            f"{info}/RECORD",
            f"tinything.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n",
        )
    return path


async def test_a_requirements_file_gets_a_managed_environment(project: Project, tmp_path: Path):
    requirements = project.write("requirements.txt", f"--no-index\n{wheel(tmp_path)}\n")
    project.write("serve.py", "import tinything\nassert tinything.ANSWER == 42\n" + SERVE)
    spec = project.container("serve.py", python=None, requirements=requirements)
    told: list[Progress] = []
    async with project.backend() as backend:
        with pytest.raises(Missing, match="has been built"):
            await backend.start(project.replica(spec))
        await asyncio.gather(backend.prepare(spec, told.append), backend.prepare(spec, told.append))
        assert [p.message for p in told].count("my/image:dev: environment ready") == 1
        await backend.start(project.replica(spec))
        event = await next_event(backend, "ready", "exited")
        assert event.kind == "ready", project.log()
        [env] = [p for p in (project.settings.cache / "envs").iterdir() if p.is_dir()]
        assert env.name.startswith("image-dev-")


async def test_a_failed_build_tells_pips_last_lines_and_leaves_nothing(project: Project):
    requirements = project.write("requirements.txt", "--no-index\nno-such-thing==1.0\n")
    spec = project.container("serve.py", python=None, requirements=requirements)
    async with project.backend() as backend:
        with pytest.raises(Missing, match="No matching distribution found for no-such-thing"):
            await backend.prepare(spec, lambda _: None)
    assert [p for p in (project.settings.cache / "envs").iterdir() if p.is_dir()] == []


async def test_offline_builds_nothing(project: Project):
    project = _with(project, offline=True)
    requirements = project.write("requirements.txt", "anything\n")
    spec = project.container("serve.py", python=None, requirements=requirements)
    async with project.backend() as backend:
        with pytest.raises(Missing, match="offline"):
            await backend.prepare(spec, lambda _: None)
    assert not (project.settings.cache / "envs").exists()


async def test_a_named_interpreter_that_lacks_the_framework_says_which(
    project: Project, tmp_path: Path
):
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False)
    spec = project.container(
        "-m", "sklearnserver", kind="runtime", runtime="sklearnserver", python=bare / "bin/python"
    )
    async with project.backend() as backend:
        with pytest.raises(Missing, match=r"lacks .*scikit-learn"):
            await backend.prepare(spec, lambda _: None)
