"""A real gateway process for tests: settings in a folder of its own, and what it reported."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from kserve_local.interfaces.routing import Endpoint, Route, RouteTable, Target
from kserve_local.interfaces.stats import RequestStat
from kserve_local.settings import Settings
from kserve_local.supervisor.gateway_process import GatewayProcess
from tests.fakes.raw_upstream import Upstream

HOST = b"Host: iris.default.example.com\r\n"
REVISION = "default/iris-predictor-00001"


class Figures:
    """The StatSink of a test."""

    def __init__(self) -> None:
        self.stats: list[RequestStat] = []
        self.pokes: list[str] = []
        self._change = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def record(self, stats: tuple[RequestStat, ...]) -> None:
        self.stats += stats
        self._tell()

    def poke(self, target: str) -> None:
        self.pokes.append(target)
        self._tell()

    def _tell(self) -> None:
        task = asyncio.get_running_loop().create_task(self._notify())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _notify(self) -> None:
        async with self._change:
            self._change.notify_all()

    async def until(self, claim: Callable[[], bool]) -> None:
        """Return once `claim` holds."""
        async with asyncio.timeout(20), self._change:
            await self._change.wait_for(claim)


class World:
    """A gateway and the table it serves."""

    def __init__(self, process: GatewayProcess, settings: Settings, figures: Figures) -> None:
        self.process = process
        self.settings = settings
        self.figures = figures
        self.version = 0

    @property
    def port(self) -> int:
        return self.process.port

    async def publish(self, *routes: Route, listen: dict[str, str] | None = None) -> None:
        """Publish these routes and wait until they are served."""
        self.version += 1
        self.process.publish(RouteTable(self.version, routes, listen))
        async with asyncio.timeout(20):
            await self.process.wait_applied(self.version)

    async def serve(self, *upstreams: Upstream, **target: object) -> None:
        """Publish one service, `iris`, at these replicas."""
        await self.publish(iris(upstreams, **target))

    def log(self) -> str:
        """Return what the gateway wrote."""
        return (self.settings.log_dir / "gateway.log").read_text()


def endpoints(upstreams: Sequence[Upstream]) -> tuple[Endpoint, ...]:
    """Return the replicas as the table lists them."""
    return tuple(
        Endpoint(f"pod-{number}", upstream.address, upstream.port)
        for number, upstream in enumerate(upstreams)
    )


def iris(upstreams: Sequence[Upstream], name: str = "iris", **fields: object) -> Route:
    """Return the route of one InferenceService with one revision."""
    target = Target(f"default/{name}-predictor-00001", 100, endpoints(upstreams))
    target = replace(target, **fields)  # type: ignore[arg-type]  # a test's own keywords
    return Route(
        "default",
        name,
        "predictor",
        (f"{name}.default.example.com", f"{name}.default.localhost"),
        (target,),
        f"/serving/default/{name}",
        (name,),
    )


def make_settings(folder: Path, **fields: object) -> Settings:
    """Return settings below `folder`, any free port."""
    state = folder / ".kserve-local"
    state.mkdir(exist_ok=True)
    settings = Settings(
        project=folder, state=state, cache=folder, runtime=folder / "run", gateway_port=None
    )
    return replace(settings, **fields)  # type: ignore[arg-type]  # a test's own keywords


@asynccontextmanager
async def world(seed: int | None = 7, **fields: object) -> AsyncIterator[World]:
    """Run a gateway; what it leaves is removed."""
    # Not pytest's folder: a Unix socket's path has to be short.
    folder = Path(tempfile.mkdtemp(prefix="ksl-gw-"))
    figures = Figures()
    settings = make_settings(folder, **fields)
    try:
        async with GatewayProcess(settings, figures, seed=seed) as process:
            yield World(process, settings, figures)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
