"""One container as a process: started, watched, probed, and ended with everything below it.

Its owner is `process.ProcessBackend`, which says when; this module knows how. State changes are
told through `on_change`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kserve_local.backends import (
    cgroups,
    code_swap,
    control,
    last_words,
    memory,
    output,
    processes,
    runfiles,
)
from kserve_local.backends import launch as launching
from kserve_local.backends.listening import addresses, why_refused
from kserve_local.backends.probes import Change, Pause, Target, watch
from kserve_local.backends.processes import Exit, MarkScanner
from kserve_local.backends.runfiles import RunFiles
from kserve_local.backends.zygotes import ForkRefused, ZygoteKey, Zygotes, supported
from kserve_local.errors import Missing
from kserve_local.interfaces.backend import (
    ContainerSpec,
    ContainerStatus,
    Mount,
    Probe,
    Program,
    ReplicaSpec,
)
from kserve_local.interfaces.code import CodeChange, CodeVerdict

log = logging.getLogger(__name__)

_EXIT_NEWS = 2.0
_SWEEP_STEP = 0.02
_SWEEP_LIMIT = 10.0
APPROXIMATE_MEMORY = "memory limit kept by sampling (approximate)"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all containers of a backend share."""

    files: RunFiles
    sockets: Path
    zygotes: Zygotes
    scanner: MarkScanner
    cgroups: cgroups.Cgroups
    place: launching.Place


def zygote_key(container: ContainerSpec, program: Program, python: Path) -> ZygoteKey | None:
    """Return which zygote can fork this container; None: only a plain start will do."""
    if not program.preload or not program.is_python or not supported():
        return None
    return ZygoteKey(
        python=python,
        preload=program.preload,
        env=launching.import_time_env(dict(container.env)),
        home_first=program.kind == "runtime",
    )


@dataclass
class Container:
    """One container; `status` is what is really there."""

    replica: ReplicaSpec
    spec: ContainerSpec
    around: Surroundings
    on_change: Callable[[Container, str, str], None]
    status: ContainerStatus
    start: int | None = None
    tokens: set[str] = field(default_factory=set)
    ending: bool = False
    killed_for_memory: bool = False
    _launch: dict[str, Any] = field(default_factory=dict)
    _zygote_pid: int | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _gone: asyncio.Event = field(default_factory=asyncio.Event)
    _pause: Pause = field(default_factory=Pause)

    @property
    def control(self) -> Path:
        """The folder of its control sockets."""
        return control.short_folder(self.around.sockets, self.replica.id, self.spec.name)

    async def begin(self, python: Path, ports: Mapping[int, int]) -> None:
        """Start the container's process.

        Raises:
            Missing: The interpreter cannot be run, or there is no program for a process.
        """
        program = self.spec.program
        if program is None:
            raise Missing(
                f'container "{self.spec.name}": image "{self.spec.image}" can only run with Docker'
            )
        replica, name = self.replica.id, self.spec.name
        token = secrets.token_hex(16)
        run_file = self.around.files.launch(replica, name)
        exit_file = self.around.files.exit(replica, name)
        shown = self.spec
        if shown.termination_path:
            file = self.around.files.termination(replica, name)
            await asyncio.to_thread(last_words.make, file)
            mount = Mount(shown.termination_path, file, read_only=False)
            shown = replace(shown, mounts=(*shown.mounts, mount))
        self._launch = launching.launch(
            self.replica,
            shown,
            program,
            python=python,
            ports=ports,
            token=token,
            run_file=run_file,
            exit_file=exit_file,
            names_file=self.around.files.names(self.replica.namespace),
            control=self.control,
            place=self.around.place,
        )
        if program.kind == "source":
            self.control.mkdir(parents=True, exist_ok=True, mode=0o700)
        cgroup = self.around.cgroups.make(token, self.spec.memory_limit_bytes)
        self._launch["cgroup"] = str(cgroup) if cgroup else ""
        self.tokens.add(token)
        self.spec.log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        exit_file.unlink(missing_ok=True)
        runfiles.write(run_file, json.dumps(self._launch).encode())
        pid, how, note = await self._start(program, python, run_file)
        self._set_running(pid, how, note, ports, time.time())
        self.on_change(self, "started", "")
        self._watch()

    async def _start(self, program: Program, python: Path, run_file: Path) -> tuple[int, str, str]:
        note = ""
        key = zygote_key(self.spec, program, python)
        if key is not None:
            try:
                zygote = self.around.zygotes.get(key)
                pid, self.start = await zygote.fork(run_file)
                self._zygote_pid = zygote.pid
                return pid, "zygote", ""
            except ForkRefused as refused:
                note = f"started without a zygote: {refused}"
                if refused.uncertain:
                    await self._disown(run_file)
                log.info("%s/%s %s", self.replica.pod, self.spec.name, note)
        main = self.around.place.home / "podlauncher" / "main.py"
        try:
            pid = processes.spawn(
                [str(python), str(main), "run", str(run_file)],
                self._launch["env"],
                log=self.spec.log_path,
            )
        except OSError as error:
            raise Missing(f"{python}: {error.strerror}") from error
        self.start = processes.start_time(pid)
        return pid, "process", note

    async def _disown(self, run_file: Path) -> None:
        """Make sure that a fork which may or may not exist does not.

        It checks the run file's token when it has its own mark: whoever comes too late for the
        sweep sees that the token is not its own any more, and leaves.
        """
        lost = self._launch["token"]
        token = secrets.token_hex(16)
        self._launch = {**self._launch, "token": token}
        self._launch["env"] = {**self._launch["env"], processes.MARK: token}
        self.tokens.add(token)
        content = json.dumps(self._launch).encode()
        runfiles.write(run_file, content)
        await self._kill_marked({lost})
        # Between its check and the kill it may have written itself into the file.
        runfiles.write(run_file, content)

    def _set_running(
        self, pid: int, how: str, note: str, ports: Mapping[int, int], started: float
    ) -> None:
        self.killed_for_memory = False
        self._gone.clear()
        no_probes = self.spec.readiness is None and self.spec.startup is None
        self.status = ContainerStatus(
            name=self.spec.name,
            state="running",
            pid=pid,
            started_at=started,
            ready=no_probes,
            ports=dict(ports),
            started_how=how,
            note=note,
        )

    def adopt(self, found: Mapping[str, Any], pid: int) -> None:
        """Take over a process that an earlier supervisor started."""
        self._launch = dict(found)
        self.tokens.add(found["token"])
        self.start = processes.start_time(pid)
        ports = {int(k): int(v) for k, v in found.get("ports", {}).items()}
        how = found.get("started_how", "process")
        if how == "zygote":
            self._zygote_pid = processes.parent_of(pid)
        self._set_running(pid, how, "", ports, found.get("started_at") or time.time())
        self._watch()

    def adopt_ended(self, found: Mapping[str, Any]) -> None:
        """Take over a container that ended while nobody watched."""
        self._launch = dict(found)
        self.tokens.add(found["token"])
        self.start = found.get("start_time")
        self.status = replace(
            self.status, pid=found.get("pid"), started_at=found.get("started_at"), state="running"
        )
        self._set_terminated(self._written_exit(found.get("pid")))
        self._gone.set()

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        label = f"{self.replica.pod}/{self.spec.name}"
        self._tasks = [loop.create_task(self._watch_exit(), name=f"exit {label}")]
        if self.spec.readiness or self.spec.liveness or self.spec.startup:
            self._tasks.append(loop.create_task(self._probe(), name=f"probes {label}"))
        elif self.status.ready:
            self.on_change(self, "ready", "")
        if self.spec.memory_limit_bytes is not None and self.status.pid is not None:
            work = memory.watch(self.status.pid, self.spec.memory_limit_bytes, self._over_memory)
            self._tasks.append(loop.create_task(work, name=f"memory {label}"))

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

    def hold(self, on: bool) -> None:
        """Judge no probe while a debugger has stopped the container. See `Backend.hold`."""
        self._pause.set(on)

    async def _explain(self, probe: Probe, refused: bool) -> str:
        """Return why a probe fails: what is listened on instead, and where the user's code is."""
        lines = [await control.explain(self.control)]
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
        program = self.spec.program
        own = program is not None and program.kind == "source"
        return self.control if own and self.status.state == "running" else None

    async def _why_refused(self, probe: Probe) -> str:
        """Return what the container's processes listen on instead of the probe's port."""
        pids = await self.around.scanner.find(self.tokens)
        listening = await asyncio.to_thread(addresses, pids)
        named = {real: port for port, real in self.status.ports.items()}
        host = probe.host or self.replica.ip or "127.0.0.1"
        return why_refused(host, probe.port, [(ip, named.get(n, n)) for ip, n in listening])

    def _began(self) -> float | None:
        """Return when its program began, as it wrote down itself."""
        found = runfiles.read_launch(self.around.files.launch(self.replica.id, self.spec.name))
        began = found.get("began")
        return float(began) if isinstance(began, (int, float)) else None

    def target(self) -> Target:
        """Return where this container's probes go."""
        cwd = self._launch.get("cwd")
        return Target(
            ip=self.replica.ip,
            ports=self.status.ports,
            env=self._launch.get("env", {}),
            cwd=Path(cwd) if cwd else None,
        )

    def _probed(self, change: Change) -> None:
        if self.status.state != "running" or self.ending:
            return
        if change.kind in ("ready", "unready"):
            self.status = replace(self.status, ready=change.kind == "ready", message=change.message)
        if change.kind == "ready" and self.status.began is None:
            self.status = replace(self.status, began=self._began())
        self.on_change(self, change.kind, change.message)

    def _over_memory(self, used: int) -> None:
        self.killed_for_memory = True
        log.info("%s/%s used %d bytes, over its limit", self.replica.pod, self.spec.name, used)
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Signal the container's process group."""
        if self.status.state == "running" and self.status.pid is not None:
            processes.send(-self.status.pid, number)
            # A fork that has not made its group yet still gets it.
            if processes.is_alive(self.status.pid, self.start):
                processes.send(self.status.pid, number)

    async def _watch_exit(self) -> None:
        pid = self.status.pid
        if pid is None:
            return
        await processes.wait_gone(pid, self.start)
        for task in self._tasks[1:]:
            task.cancel()
        # As in a container, nothing outlives the first process.
        await self.sweep()
        exited = await self._how_it_ended(pid)
        self._set_terminated(exited)
        self._gone.set()
        self.on_change(self, "exited", self.status.message)

    async def _how_it_ended(self, pid: int) -> tuple[Exit | None, str]:
        own = processes.reap(pid)
        zygote = self.around.zygotes.of(self._zygote_pid) if self._zygote_pid else None
        if own is None and zygote is not None:
            own = await zygote.exit_of(pid, self.start, within=_EXIT_NEWS)
        written, message = self._written_exit(pid)
        return own or written, message

    def _written_exit(self, pid: int | None) -> tuple[Exit | None, str]:
        found = runfiles.read(self.around.files.exit(self.replica.id, self.spec.name))
        if not found or found.get("pid") != pid:
            return None, ""
        return Exit(found["code"], found["signal"]), found.get("message", "")

    def _set_terminated(self, ended: tuple[Exit | None, str]) -> None:
        exited, message = ended
        note = self.status.note
        cgroup = str(self._launch.get("cgroup") or "")
        by_kernel = bool(cgroup) and cgroups.was_oom_killed(Path(cgroup))
        if cgroup:
            cgroups.remove(Path(cgroup))
        if by_kernel and (exited is None or exited.signal == signal.SIGKILL):
            exited, reason = Exit(137, signal.SIGKILL), "OOMKilled"
        elif self.killed_for_memory:
            exited, reason, note = Exit(137, signal.SIGKILL), "OOMKilled", APPROXIMATE_MEMORY
        elif exited is None:
            reason = "Unknown"
            message = "it ended while nobody could see how"
        elif message:
            reason = "ContainerCannotRun"
        else:
            reason = "Completed" if exited.code == 0 else "Error"
        self.status = replace(
            self.status,
            state="terminated",
            ready=False,
            finished_at=time.time(),
            exit_code=exited.code if exited else None,
            signal=exited.signal or None if exited else None,
            reason=reason,
            message=message,
            note=note,
            termination=last_words.read(
                self.around.files.termination(self.replica.id, self.spec.name)
            ),
        )

    async def sweep(self) -> None:
        """Kill whatever still carries this container's mark or sits in its group."""
        # Once it has been reaped, its number may be somebody else's group.
        if self.status.pid is not None and self.status.state == "running":
            processes.send(-self.status.pid, signal.SIGKILL)
        await self._kill_marked(self.tokens)

    async def _kill_marked(self, tokens: set[str]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SWEEP_LIMIT
        while True:
            left = await self.around.scanner.find(tokens)
            if not left:
                return
            for pid in left:
                processes.send(pid, signal.SIGKILL)
            if loop.time() > deadline:
                log.warning("%s: processes %s do not die", self.replica.pod, left)
                return
            await asyncio.sleep(_SWEEP_STEP)

    async def gone(self) -> None:
        """Wait until the container has ended and been reaped."""
        if self.status.state == "running":
            await self._gone.wait()

    def rotate(self, max_bytes: int, files: int) -> None:
        """Keep the log below `max_bytes` by moving its content aside."""
        output.rotate(self.spec.log_path, max_bytes=max_bytes, files=files)

    async def leave(self) -> None:
        """Stop watching; the process goes on."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
