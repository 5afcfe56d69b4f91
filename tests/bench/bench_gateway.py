"""The gateway against nginx, one worker each, in the same run: CPU per request and added latency.

Every round measures every subject in random order; a row is the median over rounds of the ratio
to nginx in the same round. CPU time is the process's own, from `/proc/<pid>/stat`: it moves far
less than rates when others use the machine. The upstream is another nginx (`return 200`, a 1 MiB
file) and, for uploads, a small server of ours that reads everything before it answers.

Run: `python tests/bench/bench_gateway.py [--rounds 5] [--seconds 1]`. Needs nginx and wrk
(`apt-get install nginx-light wrk`); without them it says so and exits 7.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from kserve_local.interfaces.routing import Endpoint, Route, RouteTable, Target
from kserve_local.settings import Settings
from kserve_local.supervisor.gateway_process import GatewayProcess

TICKS = os.sysconf("SC_CLK_TCK")
MEBIBYTE = 1 << 20
PATH = "/v2/models/iris/infer"
# Load and upstream on one core, what is measured on the other: they must not share time.
LOAD_CPU, SUBJECT_CPU = 0, (os.cpu_count() or 1) - 1

SINK = """
import asyncio, sys, uvloop
class Sink(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.left, self.head = transport, 0, b""
    def data_received(self, data):
        if not self.left:
            self.head += data
            end = self.head.find(b"\\r\\n\\r\\n")
            if end < 0:
                return
            lines = self.head[:end].lower().split(b"\\r\\n")
            sizes = [int(l[15:]) for l in lines if l.startswith(b"content-length:")]
            self.left = (sizes[0] if sizes else 0) - (len(self.head) - end - 4)
            self.head = b""
        else:
            self.left -= len(data)
        if not self.left:
            self.transport.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
async def main():
    server = await asyncio.get_running_loop().create_server(
        Sink, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()
uvloop.run(main())
"""

WRK_SCRIPT = """
wrk.method = os.getenv("BENCH_METHOD")
local size = tonumber(os.getenv("BENCH_BODY"))
if size > 0 then wrk.body = string.rep("x", size) end
wrk.headers["Host"] = "iris.default.example.com"
wrk.headers["Content-Type"] = "application/json"
if os.getenv("BENCH_VARY") == "1" then
  local count = 0
  request = function()
    count = count + 1
    wrk.headers["X-Request-Id"] = tostring(count)
    wrk.headers["User-Agent"] = "bench"
    wrk.headers["Accept"] = "*/*"
    wrk.headers["Accept-Encoding"] = "gzip, deflate"
    return wrk.format()
  end
end
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d\\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50)))
end
"""


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of load.

    Args:
        target: The most that the ratio to nginx may be; None: only reported.
    """

    name: str
    method: str
    path: str
    body: int
    clients: int
    upstream: str
    target: float | None
    vary: bool = False


WORKS = (
    Work("small request, 32 clients", "POST", PATH, 200, 32, "nginx", 1.5),
    Work("same, every head different", "POST", PATH, 200, 32, "nginx", None, vary=True),
    Work("small request, 1 client", "POST", PATH, 200, 1, "nginx", None),
    Work("1 MiB answer, 32 clients", "GET", "/1m", 0, 32, "nginx", 0.5),
    Work("1 MiB upload, 32 clients", "POST", PATH, MEBIBYTE, 32, "sink", 1.3),
)


@dataclass(frozen=True, slots=True)
class Run:
    """What one load run gave: CPU and median latency in microseconds, requests a second."""

    cpu_us: float
    p50_us: float
    rate: float


def cpu_seconds(pid: int) -> float:
    """Return user and system time of one process."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    fields = stat[stat.rindex(b")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def free_port() -> int:
    """Return a port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_port(port: int) -> None:
    """Return when something listens there.

    Raises:
        TimeoutError: Nothing did within ten seconds.
    """
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise TimeoutError(f"nothing listens on port {port}")


def load(port: int, work: Work, seconds: int, script: Path) -> tuple[int, float, int, float]:
    """Run wrk; return requests, seconds, errors, p50 in microseconds."""
    out = subprocess.run(
        [
            *("taskset", "-c", str(LOAD_CPU), "wrk", "-t1", f"-c{work.clients}"),
            *(f"-d{seconds}s", "--timeout", "20s", "-s", str(script)),
            f"http://127.0.0.1:{port}{work.path}",
        ],
        env={
            **os.environ,
            "BENCH_METHOD": work.method,
            "BENCH_BODY": str(work.body),
            "BENCH_VARY": "1" if work.vary else "0",
        },
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=True,
    )
    match = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+)", out.stdout)
    if match is None:
        raise RuntimeError(f"wrk said nothing: {out.stdout}{out.stderr}")
    count, micros, errors, p50 = map(int, match.groups())
    return count, micros / 1e6, errors, float(p50)


def measure(pid: int, port: int, work: Work, seconds: int, script: Path) -> Run:
    """Load one subject and account its CPU.

    Raises:
        RuntimeError: A request failed; then the figures mean nothing.
    """
    before = cpu_seconds(pid)
    count, wall, errors, p50 = load(port, work, seconds, script)
    spent = cpu_seconds(pid) - before
    if errors or not count:
        raise RuntimeError(f"{work.name}: {errors} of {count} requests failed at port {port}")
    return Run(1e6 * spent / count, p50, count / wall)


class Peers:
    """nginx as upstream and as proxy, and the sink; ended on leaving."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, command: list[str], port: int, cpu: int) -> int:
        """Start a server pinned to a core; return its pid once it listens."""
        process = subprocess.Popen(
            ["taskset", "-c", str(cpu), *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.running.append(process)
        wait_port(port)
        return process.pid

    def nginx(self, name: str, server: str, port: int, cpu: int) -> int:
        """Start nginx as one single process with this `server` block."""
        config = self.folder / f"{name}.conf"
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        paths = "".join(
            f"{kind}_temp_path {temporary}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config.write_text(
            f"""daemon off; master_process off; worker_processes 1;
pid {self.folder}/{name}.pid; error_log {self.folder}/{name}.err crit;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; multi_accept on; }}
http {{
 access_log off; sendfile on; tcp_nodelay on; server_tokens off; default_type application/json;
 keepalive_requests 100000000; keepalive_timeout 300s; client_max_body_size 0;
 {paths}{server}
}}"""
        )
        command = ["nginx", "-p", str(self.folder), "-c", str(config)]
        return self.start(command, port, cpu)

    def proxy(self, name: str, port: int, upstream: int) -> int:
        """Start nginx as a streaming proxy with kept-alive upstream connections."""
        return self.nginx(
            name,
            f"""upstream u {{ server 127.0.0.1:{upstream}; keepalive 512;
  keepalive_requests 100000000; }}
 server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://u;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
  proxy_set_header X-Forwarded-For $remote_addr; proxy_request_buffering off;
  proxy_max_temp_file_size 0; }} }}""",
            port,
            SUBJECT_CPU,
        )


class _NoStats:
    def record(self, stats: tuple[object, ...]) -> None:
        """Figures are not what is measured here."""

    def poke(self, target: str) -> None:
        """Nothing is at zero here."""


def table(port: int) -> RouteTable:
    """Return a table with one service at this port."""
    target = Target("default/iris-predictor-00001", 100, (Endpoint("iris", "127.0.0.1", port),))
    route = Route(
        "default",
        "iris",
        "predictor",
        ("iris.default.example.com",),
        (target,),
        "/serving/default/iris",
        ("iris",),
    )
    return RouteTable(1, (route,))


def settings(folder: Path, name: str) -> Settings:
    """Return the settings of a gateway of its own."""
    own = folder / name
    (own / "state").mkdir(parents=True)
    return Settings(
        project=own, state=own / "state", cache=own, runtime=own / "run", gateway_port=None
    )


async def bench(rounds: int, seconds: int, only: str, seed: int) -> bool:
    """Measure and print the rows; False: a target was missed."""
    folder = Path(tempfile.mkdtemp(prefix="ksl-bench-"))
    files = Path(tempfile.mkdtemp(prefix="ksl-bench-", dir="/dev/shm"))
    (files / "1m").write_bytes(os.urandom(MEBIBYTE))
    script = folder / "load.lua"
    script.write_text(WRK_SCRIPT)
    works = [w for w in WORKS if only in w.name]
    order = random.Random(seed)
    try:
        with Peers(folder) as peers:
            ports = {"nginx": free_port(), "sink": free_port()}
            body = '{"outputs":[]}'.ljust(200)
            peers.nginx(
                "upstream",
                f"""server {{ listen 127.0.0.1:{ports["nginx"]} backlog=4096; root {files};
  location = /1m {{ }} location / {{ return 200 '{body}'; }} }}""",
                ports["nginx"],
                LOAD_CPU,
            )
            peers.start([sys.executable, "-c", SINK, str(ports["sink"])], ports["sink"], LOAD_CPU)
            subjects: dict[tuple[str, str], tuple[int, int]] = {}
            for upstream, port in ports.items():
                proxy = free_port()
                pid = peers.proxy(f"proxy-{upstream}", proxy, port)
                subjects["nginx", upstream] = (pid, proxy)
            async with (
                GatewayProcess(settings(folder, "g1"), _NoStats()) as to_nginx,
                GatewayProcess(settings(folder, "g2"), _NoStats()) as to_sink,
            ):
                for gateway, upstream in ((to_nginx, "nginx"), (to_sink, "sink")):
                    gateway.publish(table(ports[upstream]))
                    await gateway.wait_applied(1)
                    os.sched_setaffinity(gateway.pid, {SUBJECT_CPU})
                    subjects["gateway", upstream] = (gateway.pid, gateway.port)
                return await asyncio.to_thread(
                    _measure_all, works, subjects, ports, rounds, seconds, script, order
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(files, ignore_errors=True)


def _measure_all(
    works: list[Work],
    subjects: dict[tuple[str, str], tuple[int, int]],
    ports: dict[str, int],
    rounds: int,
    seconds: int,
    script: Path,
    order: random.Random,
) -> bool:
    runs: dict[tuple[str, str], list[Run]] = {}
    direct: dict[str, list[float]] = {}
    for work in works:
        for kind in ("nginx", "gateway"):
            load(subjects[kind, work.upstream][1], work, 1, script)
    jobs = [(work, kind) for work in works for kind in ("nginx", "gateway", "direct")]
    for number in range(rounds):
        order.shuffle(jobs)
        for work, kind in jobs:
            if kind == "direct":
                p50 = load(ports[work.upstream], work, seconds, script)[3]
                direct.setdefault(work.name, []).append(p50)
            else:
                pid, port = subjects[kind, work.upstream]
                run = measure(pid, port, work, seconds, script)
                runs.setdefault((work.name, kind), []).append(run)
        print(f"round {number + 1}/{rounds}, load {os.getloadavg()[0]:.1f}", flush=True)
    title = "gateway against nginx, CPU per request"
    print(f"\n{title:42} {'ratio':>6} {'target':>7}   us: ours nginx")
    met = True
    for work in works:
        ours, theirs = runs[work.name, "gateway"], runs[work.name, "nginx"]
        ratio = statistics.median(o.cpu_us / t.cpu_us for o, t in zip(ours, theirs, strict=True))
        cpu = [statistics.median(r.cpu_us for r in found) for found in (ours, theirs)]
        rate = [statistics.median(r.rate for r in found) for found in (ours, theirs)]
        goal = f"{work.target:.1f}x" if work.target else "-"
        met = met and (work.target is None or ratio <= work.target)
        print(
            f"{work.name:42} {ratio:5.2f}x {goal:>7}   {cpu[0]:8.1f} {cpu[1]:8.1f}"
            f"   requests/s {rate[0]:.0f} {rate[1]:.0f}"
        )
    single = next((w.name for w in works if w.clients == 1), None)
    if single is not None:
        base = direct[single]
        added = [
            [max(1.0, r.p50_us - b) for r, b in zip(runs[single, kind], base, strict=True)]
            for kind in ("gateway", "nginx")
        ]
        ratio = statistics.median(o / t for o, t in zip(*added, strict=True))
        ours_us, theirs_us = (statistics.median(a) for a in added)
        met = met and ratio <= 1.3
        title = "added p50, 1 client"
        print(f"{title:42} {ratio:5.2f}x {'1.3x':>7}   {ours_us:8.1f} {theirs_us:8.1f}")
    return met


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="Gateway against nginx")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--only", default="", help="part of a row's name")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    missing = [tool for tool in ("nginx", "wrk", "taskset") if shutil.which(tool) is None]
    if missing:
        print(f"missing: {', '.join(missing)}; apt-get install nginx-light wrk util-linux")
        return 7
    met = asyncio.run(bench(options.rounds, options.seconds, options.only, options.seed))
    print("all targets met" if met else "a target was missed")
    return 0 if met else 10


if __name__ == "__main__":
    raise SystemExit(main())
