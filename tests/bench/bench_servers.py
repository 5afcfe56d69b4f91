#!/usr/bin/env python3
"""Our sklearnserver against KServe's Python server, on the same model in the same run.

    python tests/bench/bench_servers.py [--rounds 5] [--seconds 1.0] [--json FILE]

Both serve one iris SVC, one process each, on one core; the client (wrk if installed, else a small
one of our own) has the other. Rounds alternate between the servers in random order; a ratio is
taken within a round, cells are medians. CPU is user+system time of the server process tree per
answer, from /proc. A server at 32 clients should fill its core; a round in which one got less than
80 % of it measured the neighbours, and its rate is replaced by answers per CPU second. Answers are
checked before anything is measured. The peer is `kserve_iris.py` on the installed `kserve`
(KServe's own sklearnserver is not on PyPI). Prints one row per figure; the exit status is 1 if a
target is missed by more than 2x.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROW = [6.8, 2.8, 4.8, 1.4]
BODY = {
    "id": "1",
    "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROW}],
}
PATH = "/v2/models/iris/infer"
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Figure:
    """One load run: answers a second, CPU seconds of the server per answer, errors."""

    rate: float
    cpu: float
    errors: int

    @property
    def starved(self) -> bool:
        """The server had less than 80 % of a core."""
        return self.rate * self.cpu < 0.8


@dataclass(frozen=True)
class Target:
    """A row: which value is compared how, and the ratio to reach (ours / KServe)."""

    name: str
    server: str
    clients: int
    value: str
    bound: float
    at_least: bool


TARGETS = (
    Target("sklearn iris V2, 1 row, 32 clients: requests/s", "ours", 32, "rate", 25.0, True),
    Target("sklearn iris V2, 1 row, 1 client: CPU/request", "ours", 1, "cpu", 0.3, False),
)


class Server:
    """A server process on a core of its own.

    Args:
        command: Without the port.
        core: CPU to run on; None: any.
    """

    def __init__(self, name: str, command: Sequence[str], core: int | None, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.name = name
        self.log = log
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, f"--http_port={self.port}"],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        if core is not None:
            os.sched_setaffinity(self.process.pid, {core})

    def url(self, path: str) -> str:
        """Return the address of a path."""
        return f"http://127.0.0.1:{self.port}{path}"

    def check(self, limit: float = 60.0) -> None:
        """Wait until the server answers rightly.

        Raises:
            RuntimeError: It ended, took too long, or answers something else.
        """
        request = urllib.request.Request(
            self.url(PATH), json.dumps(BODY).encode(), {"content-type": "application/json"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), opener.open(request, timeout=10) as answer:
                data = json.load(answer)["outputs"][0]["data"]
                if data != [1]:
                    raise RuntimeError(f"{self.name} answered {data}, expected [1]")
                return
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text()[-2000:]}")

    def cpu_seconds(self) -> float:
        """Return user+system time of the process and its children so far."""
        total = 0
        todo = [self.process.pid]
        while todo:
            pid = todo.pop()
            try:
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                for task in Path(f"/proc/{pid}/task").iterdir():
                    todo += map(int, (task / "children").read_text().split())
            except OSError:
                continue
            total += int(stat[11]) + int(stat[12])
        return total / _TICK

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def load(server: Server, clients: int, seconds: float, core: int | None, folder: Path) -> Figure:
    """Drive a server with keep-alive clients, each sending its next request after an answer."""
    before = server.cpu_seconds()
    started = time.monotonic()
    if shutil.which("wrk"):
        answers, errors = _wrk(server, clients, seconds, core, folder)
    else:
        answers, errors = asyncio.run(_clients(server, clients, seconds))
    elapsed = time.monotonic() - started
    used = server.cpu_seconds() - before
    return Figure(answers / elapsed, used / max(answers, 1), errors)


_SCRIPT = """
wrk.method = "POST"
wrk.body = [[{body}]]
wrk.headers["Content-Type"] = "application/json"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d\\n", summary.requests,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def _wrk(
    server: Server, clients: int, seconds: float, core: int | None, folder: Path
) -> tuple[int, int]:
    script = folder / "wrk.lua"
    script.write_text(_SCRIPT.replace("{body}", json.dumps(BODY, separators=(",", ":"))))
    command = ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "-s", str(script)]
    if core is not None and shutil.which("taskset"):
        command = ["taskset", "-c", str(core), *command]
    output = subprocess.run(
        [*command, server.url(PATH)], check=True, capture_output=True, text=True
    ).stdout
    line = next(line for line in output.splitlines() if line.startswith("RESULT"))
    _, answers, errors = line.split()
    return int(answers), int(errors)


async def _clients(server: Server, clients: int, seconds: float) -> tuple[int, int]:
    """Count answers of a plain asyncio client, for where wrk is not installed."""
    body = json.dumps(BODY, separators=(",", ":")).encode()
    request = (
        f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body
    deadline = time.monotonic() + seconds
    counts = [0, 0]

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        while time.monotonic() < deadline:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
            counts[0] += 1
            counts[1] += not head.startswith(b"HTTP/1.1 200")
        writer.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(one())
    return counts[0], counts[1]


@contextlib.contextmanager
def running(servers: Sequence[Server]) -> Iterator[None]:
    """Check the servers, and stop them at the end of the block."""
    try:
        for server in servers:
            server.check()
        yield
    finally:
        for server in servers:
            server.stop()


def train(folder: Path) -> None:
    """Write the iris SVC both servers load."""
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.svm import SVC

    x, y = load_iris(return_X_y=True)
    joblib.dump(SVC(gamma=1.0).fit(x, y), folder / "model.joblib")


def measure(rounds: int, seconds: float) -> dict[tuple[str, int], list[Figure]]:
    """Return the figures per server and number of clients, one per round."""
    cores = sorted(os.sched_getaffinity(0))
    client, server_core = (cores[0], cores[-1]) if len(cores) > 1 else (None, None)
    common = ["--model_name=iris", "--enable_grpc=false"]
    figures: dict[tuple[str, int], list[Figure]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-servers-") as name:
        folder = Path(name)
        (folder / "model").mkdir()
        train(folder / "model")
        common.append(f"--model_dir={folder / 'model'}")
        ours = [sys.executable, "-m", "sklearnserver", *common]
        servers = [
            Server("ours", ours, server_core, folder / "ours.log"),
            Server(
                "ours, no batching",
                [*ours, "--enable_batching=false"],
                server_core,
                folder / "alone.log",
            ),
            Server(
                "kserve",
                [sys.executable, str(HERE / "kserve_iris.py"), *common],
                server_core,
                folder / "kserve.log",
            ),
        ]
        with running(servers):
            for clients in (1, 32):
                for server in servers:
                    load(server, clients, 0.3, client, folder)  # warm-up, not counted
            order = random.Random(7)
            for _ in range(rounds):
                for clients in (1, 32):
                    for server in order.sample(servers, len(servers)):
                        figure = load(server, clients, seconds, client, folder)
                        figures.setdefault((server.name, clients), []).append(figure)
    return figures


def ratios(
    figures: dict[tuple[str, int], list[Figure]], server: str, clients: int, value: str
) -> list[float]:
    """Return ours / KServe per round; in starved rounds rates are answers per CPU second."""
    found = []
    for ours, theirs in zip(figures[server, clients], figures["kserve", clients], strict=True):
        if value == "rate" and not (ours.starved or theirs.starved):
            found.append(ours.rate / theirs.rate)
        elif value == "rate":
            found.append(theirs.cpu / max(ours.cpu, 1e-12))
        else:
            found.append(ours.cpu / max(theirs.cpu, 1e-12))
    return found


def rows(figures: dict[tuple[str, int], list[Figure]]) -> list[dict[str, Any]]:
    """Return the rows with a target, as `make bench` collects them."""
    found = []
    for target in TARGETS:
        values = ratios(figures, target.server, target.clients, target.value)
        ratio = statistics.median(values)
        found.append(
            {
                "what": target.name,
                "against": "KServe",
                "ratio": ratio,
                "min": min(values),
                "max": max(values),
                "target": target.bound,
                "at_least": target.at_least,
                "met": ratio >= target.bound if target.at_least else ratio <= target.bound,
                "missed_by_2x": ratio < target.bound / 2
                if target.at_least
                else ratio > target.bound * 2,
            }
        )
    return found


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="per run; whole seconds with wrk"
    )
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    figures = measure(args.rounds, args.seconds)
    print(f"{'server':<20} clients {'requests/s':>12} {'CPU us/request':>16} errors")
    for (server, clients), runs in figures.items():
        rate = statistics.median(run.rate for run in runs)
        cpu = statistics.median(run.cpu for run in runs) * 1e6
        errors = sum(run.errors for run in runs)
        print(f"{server:<20} {clients:>7} {rate:>12.0f} {cpu:>16.0f} {errors:>6}")
    found = rows(figures)
    pairs = zip(figures["ours", 32], figures["kserve", 32], strict=True)
    starved = sum(ours.starved or theirs.starved for ours, theirs in pairs)
    if starved:
        print(f"{starved} of {args.rounds} rounds at 32 clients on a busy machine: by CPU time")
    for row in found:
        sign = ">=" if row["at_least"] else "<="
        print(
            f"{row['what']}: {row['ratio']:.2f}x KServe ({row['min']:.2f} to {row['max']:.2f}), "
            f"target {sign} {row['target']}x: {'met' if row['met'] else 'MISSED'}"
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    broken = any(run.errors for runs in figures.values() for run in runs)
    return 1 if broken or any(row["missed_by_2x"] for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
