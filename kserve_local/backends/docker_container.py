"""One container of a Pod on a Docker engine: made, started, watched, probed, and removed.

Its owner is `docker.DockerBackend`, which says when and passes on what the engine tells; this
module knows how. State changes are told through `on_change`.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kserve_local import confined
from kserve_local.backends import code_swap, control, docker_spec, last_words
from kserve_local.backends.docker_engine import Engine
from kserve_local.backends.listening import in_network_of, why_refused
from kserve_local.backends.probes import Change, Pause, Target, watch
from kserve_local.errors import KServeLocalError, NotFound
from kserve_local.interfaces.backend import (
    ContainerSpec,
    ContainerStatus,
    Mount,
    Probe,
    ReplicaSpec,
)
from kserve_local.interfaces.code import CodeChange, CodeVerdict

log = logging.getLogger(__name__)

_OUTPUT_END = 3.0
"""Seconds that the last output of a container that has ended may take to arrive."""
_END_OF_EXEC = 2.0
"""Seconds in which a command that took too long is looked for and killed."""
_LOOK_AGAIN = 0.05
_NO_DRIVER = "could not select device driver"
_CANNOT_RUN = 128
ADOPTED_LINES = 10_000
"""Lines of output that a new supervisor takes over from the engine."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one Pod's containers live.

    Args:
        sandbox: The container whose network they share.
        ip: The Pod's address; empty where the engine's networks cannot be reached.
        inner: The Pod's address on its own network.
        ports: The Pod's ports -> those to connect to.
        hosts: The Pod's `/etc/hosts`.
        host: This machine's address on the Pod's network; empty if it has none.
    """

    sandbox: str
    ip: str
    inner: str
    ports: Mapping[int, int]
    hosts: Path
    host: str = ""


@dataclass
class Container:
    """One container, and what is known of it.

    Args:
        killed_for: Why its owner has killed it.
    """

    engine: Engine
    state: Path
    replica: ReplicaSpec
    spec: ContainerSpec
    on_change: Callable[[Container, str, str], None]
    attempt: int = 0
    id: str = ""
    ending: bool = False
    killed_for: str = ""
    status: ContainerStatus = field(init=False)
    _place: Place | None = None
    _control: Path | None = None
    _pause: Pause = field(default_factory=Pause)
    _last_words: Path | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _output: asyncio.Task[None] | None = None
    _gone: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.status = ContainerStatus(name=self.spec.name, state="waiting")

    @property
    def label(self) -> str:
        """Its name for logs."""
        return f"{self.replica.pod}/{self.spec.name}"

    async def begin(self, place: Place) -> None:
        """Make and start the container. One that the engine cannot run has ended at once.

        Raises:
            KServeLocalError: It could not be made; nothing is left of it.
        """
        name = docker_spec.container_name(self.replica, self.spec.name, self.attempt)
        launcher: control.Launcher | None = None
        if self.spec.source:
            sockets = place.hosts.parent / "control" / self.spec.name
            launcher = await asyncio.to_thread(control.launcher, sockets)
        words = place.hosts.parent / "terminations" / self.spec.name
        spec = docker_spec.with_last_words(self.spec, words)
        if spec is not self.spec:
            await asyncio.to_thread(last_words.make, words)
        request = docker_spec.container(
            self.state,
            self.replica,
            spec,
            sandbox_id=place.sandbox,
            address=place.inner,
            hosts=place.hosts,
            machine=place.host,
            launcher=launcher,
            with_hostname=self.engine.is_podman,
        )
        try:
            made = await self.engine.call("create_container_from_config", request, name=name)
        except KServeLocalError as error:
            if not error.hint:
                error.hint = docker_spec.hint_for(self.spec, str(error))
            raise
        self.id = str(made["Id"])
        self._place = place
        _open_log(self.spec.log_path).close()
        # The last moment before the engine follows the paths: what shares a volume may have put a
        # link there since they were resolved.
        moved = await asyncio.to_thread(_moved, self.spec.mounts)
        if moved is not None:
            self._could_not_run(
                f'failed to prepare subPath for container "{self.spec.name}": '
                f'subpath "{moved.source}" not within volume path "{moved.within}"'
            )
            return
        try:
            await self.engine.call("start", self.id)
        except KServeLocalError as error:
            if isinstance(error, NotFound) or "runtime" in str(error) or "mount" in str(error):
                hint = docker_spec.hint_for(self.spec, str(error))
                foreign = await self._foreign()
                self._could_not_run("\n".join(filter(None, (str(error), foreign, hint))))
                return
            await self.remove()
            if _NO_DRIVER in str(error):
                raise KServeLocalError(
                    f"the Docker engine cannot give containers an NVIDIA GPU: {error}",
                    hint="install the NVIDIA Container Toolkit, then: sudo nvidia-ctk runtime "
                    "configure --runtime=docker && sudo systemctl restart docker",
                ) from error
            raise
        await self._take_over(await self.engine.call("inspect_container", self.id))

    async def adopt(
        self, found: Mapping[str, Any], place: Place, *, begun: float | None = None, note: str = ""
    ) -> None:
        """Take over a container that runs: an earlier supervisor's, or one kept in reserve.

        Args:
            found: The engine's inspection of it.
            begun: Unix time since when it counts as started; None: since it did.
            note: A line for its status.
        """
        self.id = str(found["Id"])
        self.attempt = int(str(found["Name"]).rpartition("_")[2] or 0)
        self._place = place
        await self._take_over(found, adopted=True, begun=begun, note=note)

    async def _take_over(
        self,
        found: Mapping[str, Any],
        *,
        adopted: bool = False,
        begun: float | None = None,
        note: str = "",
    ) -> None:
        assert self._place is not None  # set by the callers
        state = found["State"]
        self._control = docker_spec.control_of(found)
        self._last_words = docker_spec.last_words_of(found, self.spec, self.state)
        no_probes = self.spec.readiness is None and self.spec.startup is None
        self.status = ContainerStatus(
            name=self.spec.name,
            state="running",
            pid=int(state.get("Pid") or 0) or None,
            started_at=begun or docker_spec.when(str(state.get("StartedAt") or "")) or time.time(),
            ready=no_probes,
            ports=dict(self._place.ports),
            started_how="container",
            note=note,
            container_id=f"docker://{self.id}",
        )
        loop = asyncio.get_running_loop()
        work = self._follow_output(whole=adopted)
        self._output = loop.create_task(work, name=f"output {self.label}")
        if not state.get("Running"):
            if not adopted:
                self.on_change(self, "started", "")
            await self.ended(found)
            return
        self.on_change(self, "started", "")
        if self.spec.readiness or self.spec.liveness or self.spec.startup:
            self._tasks.append(loop.create_task(self._probe(), name=f"probes {self.label}"))
        elif self.status.ready:
            self.on_change(self, "ready", "")

    async def _foreign(self) -> str:
        """Return that the image is for another kind of machine, if it is."""
        with contextlib.suppress(KServeLocalError):
            image = await self.engine.call("inspect_image", self.spec.image)
            return docker_spec.foreign(self.spec.image, image, self.engine.architecture)
        return ""

    def _could_not_run(self, message: str) -> None:
        self.status = replace(
            self.status,
            state="terminated",
            started_at=time.time(),
            finished_at=time.time(),
            exit_code=_CANNOT_RUN,
            reason="ContainerCannotRun",
            message=message,
            ports={},
            started_how="container",
            container_id=f"docker://{self.id}",
        )
        self._gone.set()
        self.on_change(self, "exited", message)

    async def _probe(self) -> None:
        await watch(
            startup=self.spec.startup,
            readiness=self.spec.readiness,
            liveness=self.spec.liveness,
            target=self.target(),
            report=self._probed,
            explain=self._explain,
            pause=self._pause,
        )

    @property
    def sockets(self) -> Path | None:
        """The folder of its control sockets, if its user's own code has some."""
        return self._control

    def hold(self, on: bool) -> None:
        """Judge no probe while a debugger has stopped the container. See `Backend.hold`."""
        self._pause.set(on)

    async def _explain(self, probe: Probe, refused: bool) -> str:
        """Return why a probe fails: where the user's code is, and what is listened on instead."""
        lines = [await control.explain(self._control) if self._control else ""]
        lines.append(await self._why_refused(probe) if refused else "")
        return "\n".join(filter(None, lines))

    async def check_code(self, change: CodeChange) -> CodeVerdict:
        """See `Backend.check_code`."""
        return await code_swap.check(self._code_folder(), change)

    async def commit_code(self, change: CodeChange) -> CodeVerdict:
        """See `Backend.commit_code`."""
        return await code_swap.commit(self._code_folder(), change)

    def _code_folder(self) -> Path | None:
        """Return where the user's own processes can be asked; None: there are none."""
        return self._control if self.status.state == "running" else None

    async def _why_refused(self, probe: Probe) -> str:
        """Return what is listened on in the Pod instead of the probe's port, where we can see."""
        pid, place = self.status.pid, self._place
        found = await asyncio.to_thread(in_network_of, pid) if pid else None
        if found is None or place is None:
            return ""
        return why_refused(probe.host or place.inner, probe.port, found)

    def target(self) -> Target:
        """Return where this container's probes go."""
        place = self._place
        if place is None:
            return Target(ip="", run=self._run)
        return Target(ip=place.ip, ports=place.ports, is_proxied=not place.ip, run=self._run)

    async def _run(self, command: Sequence[str]) -> tuple[int, bytes]:
        """Run a command inside the container; return exit code and output."""
        made = await self.engine.call("exec_create", self.id, list(command))
        try:
            output = await self.engine.exec(made["Id"])
        except asyncio.CancelledError:
            await self._end_exec(made["Id"])
            raise
        found = await self.engine.call("exec_inspect", made["Id"])
        return int(found.get("ExitCode") or 0), output

    async def _end_exec(self, id: str) -> None:
        """Kill a command that nobody waits for any more, as far as we may: no engine does it."""
        try:
            async with asyncio.timeout(_END_OF_EXEC):
                while True:
                    found = await self.engine.call("exec_inspect", id)
                    if found.get("Running"):
                        await asyncio.to_thread(_kill_in, self.id, int(found.get("Pid") or 0))
                    elif found.get("Pid") or found.get("ExitCode") is not None:
                        return
                    # A busy engine may start it only now, and what it starts is no process of the
                    # container's, nor a group of its own, for a moment.
                    await asyncio.sleep(_LOOK_AGAIN)
        except (KServeLocalError, TimeoutError) as error:
            log.info("a command in %s may go on: %s", self.label, error)

    def _probed(self, change: Change) -> None:
        if self.status.state != "running" or self.ending:
            return
        if change.kind in ("ready", "unready"):
            self.status = replace(self.status, ready=change.kind == "ready", message=change.message)
        self.on_change(self, change.kind, change.message)

    async def _follow_output(self, *, whole: bool) -> None:
        """Write the container's output to its log until it ends.

        Args:
            whole: Begin with what there is already, instead of what the log file says.
        """
        tail: Any = ADOPTED_LINES if whole else "all"
        chunks = self.engine.stream(
            lambda client: client.logs(
                self.id, stdout=True, stderr=True, stream=True, follow=True, tail=tail
            )
        )
        with _open_log(self.spec.log_path, anew=whole) as file:
            try:
                async with contextlib.aclosing(chunks) as output:
                    async for chunk in output:
                        file.write(chunk)
            except KServeLocalError as error:
                log.info("output of %s ended: %s", self.label, error)

    async def look(self) -> None:
        """Ask the engine how the container is, since its news may have been missed."""
        if self.status.state != "running":
            return
        try:
            found = await self.engine.call("inspect_container", self.id)
        except NotFound:
            found = {"State": {"Running": False, "ExitCode": 137, "Error": ""}}
        if not found["State"].get("Running"):
            await self.ended(found)

    async def ended(self, found: Mapping[str, Any]) -> None:
        """Take note of the container's end.

        Args:
            found: The engine's inspection of it.
        """
        if self.status.state != "running":
            return
        state = found["State"]
        reason, code, number, message = docker_spec.exit_reason(state)
        message = message or self.killed_for
        if code and number is None and not message:
            message = await self._foreign()
        await self._stop_watching()
        if self._output is not None:
            await asyncio.wait((self._output,), timeout=_OUTPUT_END)
        said = (
            await asyncio.to_thread(last_words.read, self._last_words) if self._last_words else ""
        )
        if self.status.state != "running":
            return
        self.status = replace(
            self.status,
            state="terminated",
            ready=False,
            finished_at=docker_spec.when(str(state.get("FinishedAt") or "")) or time.time(),
            exit_code=code,
            signal=number,
            reason=reason,
            message=message,
            termination=said,
        )
        self._gone.set()
        self.on_change(self, "exited", message)

    async def signal(self, number: int) -> None:
        """Signal the container's first process; one that has ended is left alone."""
        if self.status.state != "running":
            return
        with contextlib.suppress(NotFound):
            try:
                await self.engine.call("kill", self.id, number)
            except KServeLocalError:
                await self.look()  # It ended before the signal came.
                if self.status.state == "running":
                    raise

    async def gone(self) -> None:
        """Wait until the container has ended."""
        if self.status.state == "running":
            await self._gone.wait()

    async def remove(self) -> None:
        """Remove what the engine has of it, running or not. Idempotent."""
        await self.leave()
        if self.id:
            await self.engine.remove(self.id)

    async def _stop_watching(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def leave(self) -> None:
        """Stop watching; the container goes on."""
        await self._stop_watching()
        if self._output is not None:
            self._output.cancel()
            await asyncio.gather(self._output, return_exceptions=True)
            self._output = None


def _kill_in(container: str, pid: int) -> None:
    """Kill a process and its group if it is that container's. Blocking.

    An engine in a virtual machine or elsewhere counts processes that are not ours to kill.
    """
    try:
        ours = container in Path(f"/proc/{pid}/cgroup").read_text()
        # The engine gives what it starts in a container a session of its own.
        if pid > 1 and ours and os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
    except OSError as error:
        log.info("process %d of container %s may go on: %s", pid, container[:12], error)


def _moved(mounts: Sequence[Mount]) -> Mount | None:
    """Return a mount whose source is not a real path of its volume any more, if there is one."""
    for mount in mounts:
        if mount.within is not None and not confined.is_real(mount.within, mount.source):
            return mount
    return None


def _open_log(path: Path, *, anew: bool = False) -> io.FileIO:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Appending always, so that a file cut short by rotation goes on at its start.
    how = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if anew else 0)
    return io.FileIO(os.open(path, how, 0o600), "ab")
