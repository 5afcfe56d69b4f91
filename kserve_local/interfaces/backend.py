"""The seam between the node agent (`controllers.pod`) and what runs Pods: `Backend` and the values
it takes and gives.

A *replica* is one Pod's running form: one or more containers that start and stop together. The
node agent decides what to run (images, stand-ins, init containers, restarts, back-off, status); a
backend only makes it exist, tells what is really there, and keeps no wishes of its own. All
durations are seconds, all sizes bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from kserve_local.interfaces.code import CodeChange, CodeVerdict
from kserve_local.interfaces.devices import Device

POD_IP = "{kserve-local:status.podIP}"
"""In arguments and environment of a replica that gets its address from the backend: the place of
that address.
"""
HOST_IP = "{kserve-local:status.hostIP}"
"""There too: the place of the address at which the replica's containers reach this machine."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A real directory or file that the container sees at `path` (in process mode: `path` is
    rewritten in argv/env).

    Args:
        within: A folder that containers may write, which `source` must not lead out of by the time
            it is mounted; None: nothing but `source` itself is shown.
    """

    path: str
    source: Path
    read_only: bool = True
    within: Path | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """A Kubernetes probe, defaults applied (period 10, timeout 1, success 1, failure 3)."""

    kind: Literal["http", "tcp", "exec", "grpc"]
    port: int = 0
    path: str = "/"
    scheme: str = "http"
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()
    service: str = ""
    initial_delay: float = 0.0
    period: float = 10.0
    timeout: float = 1.0
    success_threshold: int = 1
    failure_threshold: int = 3


@dataclass(frozen=True, slots=True)
class Program:
    """What runs for a container in process mode, decided by the node agent.

    Args:
        kind: `runtime`: one of our servers (`argv` begins with `-m sklearnserver`); `source`: the
        user's own code.
        runtime: Server name (`sklearnserver`); selects extra and zygote. For `source`: the image
            name.
        argv: Arguments for the interpreter, e.g. `("-m", "sklearnserver", "--model_dir",
            "/mnt/models")` or `("model.py", "--model_name", "x")`. For a `source` whose command is
            no Python: the whole command.
        python: Interpreter; None: the backend finds or builds one that has what the runtime needs.
        requirements: A requirements file for a managed environment of its own.
        cwd: Working directory (the image's `context`).
        preload: Modules a zygote may import before it forks; empty: a plain start.
        is_python: False when `argv` is an ordinary command.
    """

    kind: Literal["runtime", "source"]
    runtime: str
    argv: tuple[str, ...]
    python: Path | None = None
    requirements: Path | None = None
    cwd: Path | None = None
    preload: tuple[str, ...] = ()
    is_python: bool = True


@dataclass(frozen=True, slots=True)
class Security:
    """What a Pod's and a container's `securityContext` ask for, folded; for backends that isolate.

    Args:
        user, group: Numbers; None: the image's.
        groups: Supplemental groups, `fsGroup` among them.
        non_root: The image's user must not be root (`runAsNonRoot`).
        add, drop: Capabilities, without `CAP_`; `ALL` for all.
        seccomp: `unconfined`, or a profile in JSON; empty: the engine's own.
    """

    user: int | None = None
    group: int | None = None
    groups: tuple[int, ...] = ()
    non_root: bool = False
    read_only_root: bool = False
    privilege_escalation: bool = True
    privileged: bool = False
    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    seccomp: str = ""


@dataclass(frozen=True, slots=True)
class Build:
    """An image that is made on this machine, for backends that run images; one of the two is set.

    Args:
        server: Name of one of our model servers (`sklearnserver`).
        context: Folder of the user's source. Its Dockerfile says how; without one the image is
            Python with `packages` and `requirements`, the source, and `command` to start it.
        reload: Files and folders below `context` that the container sees as they are now.
    """

    server: str = ""
    context: Path | None = None
    command: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    requirements: Path | None = None
    reload: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Login:
    """User name and password (or token) for a registry."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """One container of a replica, everything resolved: `$(VAR)` expanded, `valueFrom` read,
    defaults applied.

    Args:
        argv: `command` + `args` as the Pod says them (what Docker would run).
        command: The first words of `argv` that are the Pod's `command`: they replace the image's
            entry point, the rest its arguments. Empty: the image's entry point stays.
        pull: `imagePullPolicy`.
        build: How the image that runs is made; None: `image` is what runs.
        logins: What the image may be pulled with, tried in order; for `Backend.prepare` alone, and
            empty in what is started.
        program: What runs instead in process mode; None: this container needs Docker.
        ports: Container ports by name (`""` if unnamed) in the Pod's order.
        cpu_limit: Cores; None: no limit.
        source: Folder in a real container that holds the user's own Python code; set by the
            backend, which sends the launcher along. Empty: none.
        devices: The GPUs that it may see, simulated ones among them, and no other. None: this
            machine has none, and nothing need be hidden.
        log_path: File that receives stdout and stderr, appended.
        termination_path: File in the container that holds its last words (in process mode:
            rewritten in argv/env, as a mount is); empty: none.
    """

    name: str
    image: str
    argv: tuple[str, ...]
    log_path: Path
    command: tuple[str, ...] = ()
    pull: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    build: Build | None = None
    logins: tuple[Login, ...] = ()
    security: Security = Security()
    env: tuple[tuple[str, str], ...] = ()
    program: Program | None = None
    working_dir: str = ""
    termination_path: str = ""
    source: str = ""
    ports: tuple[tuple[str, int], ...] = ()
    cpu_limit: float | None = None
    memory_limit_bytes: int | None = None
    devices: tuple[Device, ...] | None = None
    mounts: tuple[Mount, ...] = ()
    readiness: Probe | None = None
    liveness: Probe | None = None
    startup: Probe | None = None


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One Pod to run.

    Args:
        id: The Pod's uid; the replica's id everywhere.
        ip: The Pod's own loopback address (process mode on Linux); empty: ephemeral ports are
            assigned, or the backend gives the Pod an address and puts it where `POD_IP` stands.
        grace: terminationGracePeriodSeconds.
        resolve: Host names that the Pod's containers resolve before those of its namespace
            (`Backend.resolve`), e.g. `{"db.test": "10.9.9.9"}`; entries starting with `*.` match
            any name below. The launcher applies them.
        labels: Pod labels, kept for adoption.
        hostname: What the Pod calls itself, where that is not its name.
        domain: `<subdomain>.<namespace>.svc.<cluster domain>` of a Pod with a `subdomain`.
    """

    id: str
    namespace: str
    pod: str
    containers: tuple[ContainerSpec, ...]
    ip: str = ""
    grace: float = 30.0
    resolve: tuple[tuple[str, str], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    hostname: str = ""
    domain: str = ""


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    """What is really there of one container.

    Args:
        state: `waiting` before the first start, then `running` or `terminated`.
        started_at / finished_at: Unix times.
        began: Monotonic seconds at which its program began; None: not known (yet).
        exit_code: 137 after SIGKILL (128 + signal), as Kubernetes shows; None while not terminated.
        reason: `Completed`, `Error`, `OOMKilled`, `ContainerCannotRun`, `Unknown`; empty while
        running.
        ready: Readiness (and startup) probes say yes; without probes: running.
        ports: Port the Pod names -> port really listened on (equal where the Pod has its own
            address).
        started_how: `zygote`, `process`, `container`; for status and metrics.
        note: One line about an approximation or fallback taken (e.g. why no zygote was used).
        container_id: `docker://<id>` of a container; empty for a process.
        termination: What it wrote to `ContainerSpec.termination_path`, its last 4096 bytes.
    """

    name: str
    state: Literal["waiting", "running", "terminated"]
    pid: int | None = None
    started_at: float | None = None
    finished_at: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    message: str = ""
    ready: bool = False
    ports: Mapping[int, int] = field(default_factory=dict)
    started_how: str = ""
    began: float | None = None
    note: str = ""
    container_id: str = ""
    termination: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What is really there of one replica."""

    id: str
    namespace: str
    pod: str
    ip: str
    containers: tuple[ContainerStatus, ...]
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaEvent:
    """Something changed in a replica: started, exited, became ready or unready, failed liveness,
    was killed for memory.

    `status` is the whole new state, so a missed event costs nothing.
    """

    id: str
    kind: Literal["started", "exited", "ready", "unready", "unhealthy", "note"]
    container: str
    status: ReplicaStatus
    message: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Resource use of one replica: CPU seconds since start and memory now (PSS in process mode)."""

    cpu_seconds: float
    memory_bytes: int
    approximate: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of a slow preparation, for Events and progress lines.

    `done`/`total` are bytes for downloads and unknown (None) otherwise.
    """

    phase: str
    message: str
    done: int | None = None
    total: int | None = None
    rate: float | None = None


class Backend(Protocol):
    """Runs replicas and reports what is really there. Entry point group `kserve_local.backends`."""

    async def prepare(self, container: ContainerSpec, report: Callable[[Progress], None]) -> None:
        """Make sure what the container needs is there (environment built, image pulled). Slow;
        idempotent.

        Raises:
            Missing: It cannot be had; the message ends with what helps (pip's last lines).
        """

    def host_address(self) -> str:
        """Return this machine's address as replicas with a network of their own see it; else ""."""

    async def runs_images(self) -> bool:
        """Whether a container without a program (`ContainerSpec.program`) can run here now."""

    async def warm(self, container: ContainerSpec) -> None:
        """Let a start of this container be fast soon (a zygote begins its imports). Returns at
        once; never fails.
        """

    async def start(self, spec: ReplicaSpec) -> str:
        """Start all containers and return the replica id. Leaves nothing behind when it raises."""

    async def start_container(self, replica: str, container: ContainerSpec) -> None:
        """Start one terminated container of a running replica again (restartPolicy)."""

    async def stop_container(self, replica: str, container: str, *, grace: float) -> None:
        """End one container of a running replica (failed liveness); the others go on.

        SIGTERM, wait `grace`, SIGKILL; returns once it has ended. Idempotent.

        Raises:
            NotFound: No such replica or container.
        """

    async def resolve(self, namespace: str, names: tuple[tuple[str, str], ...]) -> None:
        """Let the replicas of a namespace, those that come later too, resolve these names.

        From now on and no others: one call a namespace, however many replicas it has.
        """

    async def stop(self, replica: str, *, grace: float) -> None:
        """SIGTERM, wait `grace`, SIGKILL, reap. Idempotent; returns once nothing is left."""

    async def hold(self, replica: str, on: bool) -> None:
        """Judge no probe of a replica that a debugger has stopped; with `on` false, all again.

        What it was, ready or not, it stays. Its memory limit is kept as ever.

        Raises:
            NotFound: No such replica.
        """

    async def control_sockets(self, replica: str, container: str) -> Path | None:
        """Return the folder in which a container's Python processes listen (`podlauncher.control`).

        None: it runs none of the user's own code.

        Raises:
            NotFound: No such replica.
        """

    async def list(self) -> Sequence[ReplicaStatus]:
        """Return all replicas, survivors of an earlier supervisor included."""

    def events(self) -> AsyncIterator[ReplicaEvent]:
        """Yield changes as they happen. One consumer."""

    async def check_code(self, replica: str, container: str, change: CodeChange) -> CodeVerdict:
        """Ask a container's processes whether a change can be put into them; changes nothing.

        A process that does not answer in time refuses.

        Raises:
            NotFound: No such replica or container.
        """

    async def commit_code(self, replica: str, container: str, change: CodeChange) -> CodeVerdict:
        """Put a change that was checked into all processes of a container.

        A process that came after the check is checked first. What a verdict that refuses leaves
        behind is a container to be replaced.

        Raises:
            NotFound: No such replica or container.
        """

    async def usage(self, replica: str) -> Usage:
        """Return the replica's resource use.

        Raises:
            NotFound: No such replica.
        """

    async def close(self, *, stop_replicas: bool) -> None:
        """End the backend; with `stop_replicas` also all replicas and helper processes."""
