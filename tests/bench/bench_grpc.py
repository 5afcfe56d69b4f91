"""gRPC through the gateway: against the call itself, and against nginx's grpc_pass.

A real server (grpcio, bytes in and out) and a real client, each in a process of its own; every
round measures every subject in random order, and a row is the median over rounds. CPU time is the
process's own. The last row streams 100 MB messages and looks at what the gateway's memory does.

Run: `python tests/bench/bench_grpc.py [--rounds 5]`. Needs nginx (`apt-get install nginx-light`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from kserve_local.interfaces.routing import Endpoint, Route, RouteTable, Target
from kserve_local.supervisor.gateway_process import GatewayProcess
from tests.bench.bench_gateway import (
    LOAD_CPU,
    SUBJECT_CPU,
    Peers,
    _NoStats,
    cpu_seconds,
    free_port,
    settings,
    wait_port,
)
from tests.fakes.rpc_upstream import LARGE, SERVICE, RpcUpstream

HOST = "iris.default.example.com"
SIZE = 300
LARGE_MESSAGE = 100_000_000


@dataclass(frozen=True, slots=True)
class Run:
    """One load run: the subject's CPU and the median latency, in microseconds, calls a second."""

    cpu_us: float
    p50_us: float
    rate: float


async def serve() -> None:
    """Serve until killed; the first line is the port."""
    async with RpcUpstream() as upstream:
        print(upstream.port, flush=True)
        await asyncio.sleep(3600)


async def load(port: int, calls: int, clients: int, size: int) -> dict[str, float]:
    """Call `Echo` so many times; return p50 in microseconds and calls a second."""
    options = [
        ("grpc.default_authority", HOST),
        ("grpc.max_receive_message_length", LARGE),
        ("grpc.max_send_message_length", LARGE),
    ]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        echo = channel.unary_unary(f"/{SERVICE}/Echo")
        message = b"x" * size
        assert await echo(message) == message
        took: list[float] = []

        async def client() -> None:
            for _ in range(calls // clients):
                begun = time.perf_counter()
                await echo(message)
                took.append(time.perf_counter() - begun)

        begun = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        rate = len(took) / (time.perf_counter() - begun)
    return {"p50": statistics.median(took) * 1e6, "rate": rate}


def run_load(port: int, calls: int, clients: int, size: int = SIZE) -> dict[str, float]:
    """Run `load` in a process of its own, on the load's core."""
    words = [sys.executable, __file__, "--load", *map(str, (port, calls, clients, size))]
    done = subprocess.run(
        ["taskset", "-c", str(LOAD_CPU), *words], capture_output=True, check=True, timeout=300
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(pid: int, port: int, calls: int, clients: int) -> Run:
    """Load one subject and account its CPU."""
    before = cpu_seconds(pid)
    found = run_load(port, calls, clients)
    return Run(1e6 * (cpu_seconds(pid) - before) / calls, found["p50"], found["rate"])


def resident(pid: int, what: str = "VmRSS") -> int:
    """Return a process's memory in KiB: now, or the most so far (`VmHWM`)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def start_server(peers: Peers) -> tuple[int, int]:
    """Start the server, on the load's core; return its pid and port."""
    process = subprocess.Popen(
        ["taskset", "-c", str(LOAD_CPU), sys.executable, __file__, "--serve"],
        stdout=subprocess.PIPE,
    )
    peers.running.append(process)
    assert process.stdout is not None  # a pipe was asked for
    port = int(process.stdout.readline())
    wait_port(port)
    return process.pid, port


async def bench(rounds: int, seed: int) -> None:
    """Measure and print the rows."""
    folder = Path(tempfile.mkdtemp(prefix="ksl-bench-"))
    try:
        with Peers(folder) as peers:
            server, port = start_server(peers)
            proxy = free_port()
            nginx = peers.nginx(
                "grpc",
                f"""upstream u {{ server 127.0.0.1:{port}; keepalive 512;
  keepalive_requests 100000000; }}
 server {{ listen 127.0.0.1:{proxy} http2; http2_max_requests 100000000;
  location / {{ grpc_pass grpc://u; }} }}""",
                proxy,
                SUBJECT_CPU,
            )
            async with GatewayProcess(settings(folder, "g"), _NoStats()) as gateway:
                place = Endpoint("iris", "127.0.0.1", port, grpc_port=port)
                target = Target("default/iris-predictor-00001", 100, (place,))
                route = Route("default", "iris", "predictor", (HOST,), (target,))
                gateway.publish(RouteTable(1, (route,)))
                await gateway.wait_applied(1)
                os.sched_setaffinity(gateway.pid, {SUBJECT_CPU})
                subjects = {
                    "gateway": (gateway.pid, gateway.port),
                    "nginx": (nginx, proxy),
                    "direct": (server, port),
                }
                await asyncio.to_thread(_measure_all, subjects, rounds, seed)
                await asyncio.to_thread(_stream, gateway.pid, gateway.port)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure_all(subjects: dict[str, tuple[int, int]], rounds: int, seed: int) -> None:
    order = random.Random(seed)
    runs: dict[tuple[str, int], list[Run]] = {}
    jobs = [(who, clients) for who in subjects for clients in (1, 32)]
    for number in range(rounds):
        order.shuffle(jobs)
        for who, clients in jobs:
            pid, port = subjects[who]
            runs.setdefault((who, clients), []).append(
                measure(pid, port, 1000 if clients == 1 else 4000, clients)
            )
        print(f"round {number + 1}/{rounds}, load {os.getloadavg()[0]:.1f}", flush=True)
    print(f"\n{'gRPC unary, 300 bytes':42} {'ratio':>6}   us: ours peer")
    for clients in (1, 32):
        ours, theirs = runs["gateway", clients], runs["nginx", clients]
        _row(
            f"CPU a call against nginx's grpc_pass, {clients}",
            [r.cpu_us for r in ours],
            [r.cpu_us for r in theirs],
        )
        _row(
            f"CPU a call against the server's own, {clients}",
            [r.cpu_us for r in ours],
            [r.cpu_us for r in runs["direct", clients]],
        )
    for peer in ("direct", "nginx"):
        _row(
            f"p50 against {peer}, 1 client",
            [r.p50_us for r in runs["gateway", 1]],
            [r.p50_us for r in runs[peer, 1]],
        )


def _row(name: str, ours: list[float], theirs: list[float]) -> None:
    ratio = statistics.median(o / max(t, 0.1) for o, t in zip(ours, theirs, strict=True))
    print(
        f"{name:42} {ratio:5.2f}x   {statistics.median(ours):8.1f} {statistics.median(theirs):8.1f}"
    )


def _stream(pid: int, port: int) -> None:
    before = resident(pid)
    found = run_load(port, 5, 1, LARGE_MESSAGE)
    most = resident(pid, "VmHWM")
    print(
        f"{'100 MB there and back, 5 times':42} p50 {found['p50'] / 1e3:.0f} ms, memory of the "
        f"gateway {before / 1024:.0f} MiB before, {most / 1024:.0f} MiB at most"
    )
    if most - before > 64 * 1024:
        raise SystemExit("the gateway's memory grows with the message")


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="gRPC through the gateway")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=4, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return 0
    if options.load:
        print(json.dumps(asyncio.run(load(*options.load))))
        return 0
    if shutil.which("nginx") is None:
        print("nginx is missing; apt-get install nginx-light")
        return 7
    asyncio.run(bench(options.rounds, options.seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
