"""Read this first: the whole wiring of a running project, top to bottom.

`run` builds store, backend, gateway, controllers and API server, in the order in which they must
end the other way round, says that it is ready, and waits to be told to stop. A clean stop takes
everything down; a crash leaves gateway and replicas serving, and the next `run` adopts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kserve_local import __version__, procs
from kserve_local.aio import running
from kserve_local.backends.gpus import Gpus
from kserve_local.backends.group import BackendGroup
from kserve_local.errors import AlreadyExists, Missing
from kserve_local.settings import Settings, default_python
from kserve_local.supervisor import statedir
from kserve_local.supervisor.leftovers import has_survivors
from kserve_local.supervisor.ports import listen
from kserve_local.supervisor.warm import warm_runtimes

if TYPE_CHECKING:
    from kserve_local.supervisor.gateway_process import GatewayProcess

logger = logging.getLogger(__name__)

Ready = Callable[[], None]

DRAIN = 10.0
"""Seconds that running requests have at a clean stop."""

TOKEN_LENGTH = 43
"""Characters of a token: 32 random bytes."""

STATE_CHECK = 2.0
"""Seconds between two looks whether the state folder is still there."""


def run(
    settings: Settings, *, warm: Sequence[str], ready: Ready, started_with: Mapping[str, Any]
) -> int:
    """Run the project until SIGTERM or SIGINT; return the exit code.

    Args:
        warm: Runtimes (`sklearnserver`, ...) that the project will need: their zygotes start
            before anything else is imported.
        ready: Called once, when everything listens.
        started_with: Flags, profile and digests of the configuration: into the run file, for
            later commands to compare with.

    Raises:
        KServeLocalError: The project cannot be started; nothing is left behind.
    """
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    with runner:
        return runner.run(_run(settings, warm, ready, started_with))


async def _run(
    settings: Settings, warm: Sequence[str], ready: Ready, started_with: Mapping[str, Any]
) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    statedir.prepare(settings)
    lock = statedir.Lock(settings)
    survivors = _Survivors(leave=has_survivors(settings))
    try:
        async with AsyncExitStack() as stack:
            gateway = await _start(settings, warm, stack, stop, survivors, started_with)
            ready()
            logger.info("ready")
            await stop.wait()
            logger.info("stopping")
            survivors.leave = False
            # First of all, so that running requests end while their replicas still live.
            await gateway.stop(DRAIN)
    finally:
        if not survivors.leave:
            statedir.remove_runtime(settings)
        lock.release()
    return 0


@dataclass
class _Survivors:
    """What to do at the end with a gateway and replicas that served before we came.

    Args:
        leave: As long as the start may fail, they are left as they were found.
    """

    leave: bool


async def _start(
    settings: Settings,
    warm: Sequence[str],
    stack: AsyncExitStack,
    stop: asyncio.Event,
    survivors: _Survivors,
    started_with: Mapping[str, Any],
) -> GatewayProcess:
    """Bring everything up; what is up goes onto the stack. Returns the gateway."""
    # Ports first: a taken one must be known before anything is started.
    api_socket = listen("127.0.0.1", _api_port(settings), what="api.port", flag="--api-port")
    stack.callback(api_socket.close)
    backend = await stack.enter_async_context(_backend(settings, survivors))
    await warm_runtimes(backend.processes, warm, settings)
    # A driver may need a second to wake; the zygotes import meanwhile.
    gpus = Gpus()
    devices = await asyncio.to_thread(gpus.inventory, settings)
    for text in devices.left_out:
        logger.warning("%s", text)

    # Only now what is slow to import: the zygotes import on the other core meanwhile.
    from kserve_local.supervisor.gateway_process import GatewayProcess
    from kserve_local.supervisor.stats import Stats

    stats = Stats()
    gateway = await stack.enter_async_context(
        _gateway(GatewayProcess(settings, stats, seed=settings.seed), survivors)
    )

    from kserve_local.apiserver.app import create_app
    from kserve_local.apiserver.logs import FileLogs
    from kserve_local.apiserver.serve import serving
    from kserve_local.apiserver.watch import OpenStreams
    from kserve_local.controllers.addresses import AddressPool
    from kserve_local.controllers.observed import Observations
    from kserve_local.devloop.activity import Activity
    from kserve_local.devloop.problems import Problems
    from kserve_local.gateway.main import PAYLOADS
    from kserve_local.interfaces.holds import Holds
    from kserve_local.store.events import EventRecorder
    from kserve_local.store.store import open_store
    from kserve_local.supervisor import certificates
    from kserve_local.supervisor.cold_starts import ColdStarts
    from kserve_local.supervisor.control import ControlPlane, node_facts
    from kserve_local.supervisor.debugging import Debugging
    from kserve_local.supervisor.debugging import routes as debug_routes
    from kserve_local.supervisor.dev_summary import routes as dev_routes
    from kserve_local.supervisor.payload_store import PayloadStore
    from kserve_local.supervisor.payloads import routes as payload_routes
    from kserve_local.supervisor.pod_metrics import routes as metrics_routes
    from kserve_local.supervisor.pod_usage import PodUsage
    from kserve_local.supervisor.requests import routes as requests_routes
    from kserve_local.supervisor.summary import routes as summary_routes

    store = await stack.enter_async_context(open_store(settings.database))
    await _ensure_builtins(store)
    recorder = EventRecorder(store)
    addresses = AddressPool(settings.state, settings.cache)
    stack.callback(lambda: addresses.close(give_up=not survivors.leave))
    observed = Observations()
    holds = Holds()
    starts = ColdStarts(store, recorder, gateway.listed)
    stats.pass_on(starts)
    gateway.woken = starts.woken
    await stack.enter_async_context(running(starts.run(), name="cold-starts"))
    plane = ControlPlane(
        settings,
        store,
        recorder,
        backend,
        gateway,
        addresses,
        observed,
        devices,
        gateway.released,
        starts.started,
        holds,
    )
    stats.pass_on(plane.autoscaler)
    if plane.memory is not None:
        stats.pass_on(plane.memory)
    await stack.enter_async_context(plane.running())
    debugging = Debugging(
        store, backend, holds, gateway.hold, plane.autoscaler.poke, settings.debug_ports
    )
    await stack.enter_async_context(debugging.running())

    uploads = PayloadStore(settings, store, recorder, gateway.objects, node_facts())
    await stack.enter_async_context(running(uploads.run(), name="payload-store"))
    stack.push_async_callback(uploads.finish)

    usage = PodUsage(backend, gpus, devices)
    problems, activity = Problems(), Activity()
    token = _token(settings)
    files = certificates.ensure(settings.state / "tls")
    streams = OpenStreams()
    app = create_app(
        store,
        token=token,
        log_reader=FileLogs(store, settings.log_dir),
        extra_routes=[
            *summary_routes(
                settings, store, backend, stats, observed, usage, starts, stop, problems
            ),
            *dev_routes(problems, activity),
            *metrics_routes(store, usage),
            *requests_routes(gateway),
            *payload_routes(settings.state / PAYLOADS, streams),
            *debug_routes(debugging, settings.images, streams),
        ],
        streams=streams,
    )
    port = api_socket.getsockname()[1]
    await stack.enter_async_context(
        serving(app, api_socket, certificate=files.certificate, key=files.key, streams=streams)
    )
    await stack.enter_async_context(running(_end_with(settings.state, stop), name="state-folder"))
    _announce(settings, stack, token, files.ca, port, gateway, started_with)
    if settings.watch:
        from kserve_local.supervisor.dev import watching

        await stack.enter_async_context(
            watching(
                settings,
                started_with,
                store,
                backend,
                recorder,
                problems,
                activity,
                taken_over=lambda fresh: gateway.record(fresh.requests),
            )
        )
    return gateway


async def _end_with(folder: Path, stop: asyncio.Event) -> None:
    """Stop once the state folder is gone: nobody could find us any more."""
    mine = _inode(folder)
    while _inode(folder) == mine:  # noqa: ASYNC110  # nothing tells of a folder moved away
        await asyncio.sleep(STATE_CHECK)
    logger.error("the state folder %s is gone; stopping", folder)
    stop.set()


def _inode(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except OSError:
        return None


def _api_port(settings: Settings) -> int | None:
    """Return the API port to bind; with `auto` the one of before, so kubeconfigs stay true."""
    from kserve_local.client.project import read_run_file

    if settings.api_port is not None:
        return settings.api_port
    before = read_run_file(settings)
    if before is None or before.alive:
        return None
    port = int(before.api_url.rsplit(":", 1)[1])
    with contextlib.suppress(Exception):
        listen("127.0.0.1", port, what="", flag="").close()
        return port
    return None


@asynccontextmanager
async def _backend(settings: Settings, survivors: _Survivors) -> AsyncIterator[BackendGroup]:
    backend = await BackendGroup.open(settings)
    try:
        yield backend
    finally:
        await backend.close(stop_replicas=not survivors.leave)
        if not survivors.leave:
            await asyncio.to_thread(statedir.remove_volumes, settings)


@asynccontextmanager
async def _gateway(gateway: GatewayProcess, survivors: _Survivors) -> AsyncIterator[GatewayProcess]:
    async with gateway:
        try:
            yield gateway
        finally:
            if survivors.leave:
                gateway.detach()


async def _ensure_builtins(store: object) -> None:
    """Put in what every cluster with KServe has; objects that are there stay as they are."""
    from kserve_local.api import scheme
    from kserve_local.api.builtin import builtin_objects
    from kserve_local.store.store import Store

    assert isinstance(store, Store)

    async def ensure(obj: dict[str, object]) -> None:
        with contextlib.suppress(AlreadyExists):
            await store.create(obj)

    missing = [o for o in builtin_objects() if store.find(scheme.key_of(o)) is None]
    first = [o for o in missing if o["kind"] == "Namespace"]
    for group in (first, [o for o in missing if o["kind"] != "Namespace"]):
        await asyncio.gather(*(ensure(obj) for obj in group))


def _token(settings: Settings) -> str:
    """Return the API's bearer token: kept across restarts, so that a kubeconfig stays valid."""
    path = settings.run_dir / "token"
    try:
        # One that others may read, or that came with the project, is no secret.
        if statedir.is_private(path) and len(token := path.read_text().strip()) >= TOKEN_LENGTH:
            return token
        path.unlink()
        raise FileNotFoundError(path)
    except FileNotFoundError:
        token = secrets.token_urlsafe(32)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token)
        return token


def _announce(
    settings: Settings,
    stack: AsyncExitStack,
    token: str,
    ca: Path,
    port: int,
    gateway: GatewayProcess,
    started_with: Mapping[str, Any],
) -> None:
    """Write kubeconfig and run file: from here on others find us."""
    from kserve_local.client import kubeconfig

    url = f"https://127.0.0.1:{port}"
    access = kubeconfig.Access(url, ca.read_text(), token, settings.namespace)
    kubeconfig.write(settings.kubeconfig, access)
    me = procs.identify(os.getpid())
    assert me is not None  # this process is alive
    statedir.write_run_file(
        settings,
        {
            "pid": me.pid,
            "started": me.started,
            "version": __version__,
            "project": str(settings.project),
            "backend": settings.backend,
            "gpu": settings.gpu,
            "simulate_gpus": settings.simulate_gpus,
            "gateway": {"pid": gateway.pid, "url": gateway.url},
            "api": {"url": url, "kubeconfig": str(settings.kubeconfig)},
            **started_with,
        },
    )
    stack.callback(statedir.remove_run_file, settings)


def interpreter_of(settings: Settings) -> tuple[Path, bool]:
    """Return what `python` means in the project and whether it can import the kserve SDK.

    Raises:
        Missing: It is not there.
    """
    path = default_python(settings.project, os.environ)
    if not path.exists():
        raise Missing(f'the interpreter "{path}" does not exist')
    if path == Path(sys.executable):
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.version("kserve")
            return path, True
        return path, False
    pattern = "lib/python*/site-packages/kserve/__init__.py"
    return path, any(path.parent.parent.glob(pattern))
