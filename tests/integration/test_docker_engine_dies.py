"""`kill -9` of the Docker engine, of a container and of the supervisor while requests come: a
private engine of this test's own, so that no other container on the machine notices.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.project import ENGINE, Project, project, wait_until

pytestmark = pytest.mark.docker

IMAGE = "python:3.11-slim"
SERVER = """import http.server, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"42")
    def log_message(self, *args):
        pass
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""
MANIFEST = f"""apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{name: any}}
spec:
  predictor:
    containers:
      - name: kserve-container
        image: {IMAGE}
        imagePullPolicy: Never
        command: [python3, -c, {json.dumps(SERVER)}]
        ports: [{{containerPort: 8080}}]
"""


@dataclass
class Engine:
    """A dockerd on a socket and in folders of its own."""

    folder: Path
    bridge: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"unix://{self.folder}/docker.sock"

    def start(self) -> None:
        """Start it, after a kill as well, and wait until it answers."""
        for left in ("docker.pid", "exec/containerd/containerd.pid"):
            (self.folder / left).unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["dockerd", "--host", self.host, "--data-root", str(self.folder / "data"),
                 "--exec-root", str(self.folder / "exec"), "--pidfile",
                 str(self.folder / "docker.pid"), "--iptables=false", "--bip", self.bridge,
                 "--default-address-pool", "base=10.213.0.0/16,size=24"],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_until(self.answers, why="the private engine answers")

    def answers(self) -> bool:
        done = subprocess.run(
            ["docker", "--host", self.host, "info"], capture_output=True, check=False
        )
        return done.returncode == 0

    def kill(self) -> None:
        """`kill -9` of the engine and of the containerd it started."""
        assert self.process is not None
        pids = [self.process.pid]
        with contextlib.suppress(OSError, ValueError):
            pids.append(int((self.folder / "exec/containerd/containerd.pid").read_text()))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)

    def containers(self) -> list[str]:
        words = ["docker", "--host", self.host, "ps", "--all", "--quiet"]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()


def bridge_of_the_machine() -> str:
    """Return address and prefix of the default bridge of the machine's engine."""
    form = "{{range .IPAM.Config}}{{.Subnet}} {{.Gateway}}{{end}}"
    words = ["docker", "--host", ENGINE, "network", "inspect", "bridge", "--format", form]
    subnet, *gateway = subprocess.check_output(words, text=True).split()
    network = ipaddress.ip_network(subnet)
    # An engine names none where it has made the bridge itself: the first address then.
    return f"{gateway[0] if gateway else next(network.hosts())}/{network.prefixlen}"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    # It shares docker0 with the machine's engine, at the address that it has, and uses it for
    # nothing: told of another bridge, or of none, it would take that one away.
    # Sockets have short paths.
    folder = Path(tempfile.mkdtemp(prefix="kl-engine-", dir="/tmp"))
    made = Engine(folder, bridge_of_the_machine())
    made.start()
    try:
        with subprocess.Popen(
            ["docker", "--host", ENGINE, "save", IMAGE], stdout=subprocess.PIPE
        ) as saved:
            subprocess.run(
                ["docker", "--host", made.host, "load", "--quiet"], stdin=saved.stdout, check=True
            )
        yield made
    finally:
        assert made.process is not None
        made.process.terminate()
        made.process.wait(60)
        # An engine that was killed has left its mounts, one above the other.
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for place in reversed([at for at in mounted if at.startswith(str(folder))]):
            subprocess.run(["umount", "--lazy", place], check=True)
        shutil.rmtree(folder)


@pytest.fixture
def served(tmp_path: Path, engine: Engine) -> Iterator[Project]:
    folder = tmp_path / "any"
    folder.mkdir()
    (folder / "any.yaml").write_text(MANIFEST)
    with project(folder, env={"DOCKER_HOST": engine.host}) as own:
        own.up()
        yield own
        own.run("down")
    assert engine.containers() == []


@dataclass
class Load:
    """Requests one after the other from a few clients; what each was answered."""

    own: Project
    statuses: list[int] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *of: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                status, _ = self.own.call("/serving/default/any/", timeout=100)
            except OSError:
                status = 0
            self.statuses.append(status)

    def until_more(self, count: int) -> None:
        """Wait for this many more answers of 200."""
        have = self.statuses.count(200)
        wait_until(lambda: self.statuses.count(200) >= have + count, timeout=100, why="answers")

    @property
    def failed(self) -> list[int]:
        return [status for status in self.statuses if status != 200]


def test_an_engine_that_is_killed_and_comes_back(served: Project, engine: Engine) -> None:
    with Load(served) as load:
        load.until_more(20)
        engine.kill()
        time.sleep(1.0)
        # Nobody needs the engine for this, and containers outlive it.
        assert served.run("status", check=None).returncode == 0
        load.until_more(5)
        engine.start()
        # It ends what it finds of before; the container is started again, and who asks waits.
        wait_until(lambda: served.service("any")["restarts"] >= 1, why="it is started again")
        wait_until(lambda: served.service("any")["ready"], why="the service is Ready")
        load.until_more(20)
    # Only what the container was working on when it died may have failed.
    assert len(load.failed) <= 4, load.failed


def test_a_killed_container_costs_its_own_requests_only(served: Project) -> None:
    with Load(served) as load:
        load.until_more(20)
        [pid] = served.service("any")["revisions"][0]["pids"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: served.service("any")["restarts"] == 1, why="it is started again")
        load.until_more(20)
    assert len(load.failed) <= 4, load.failed


def test_a_killed_supervisor_costs_nothing(served: Project) -> None:
    with Load(served) as load:
        load.until_more(20)
        os.kill(int(served.run_file["pid"]), signal.SIGKILL)
        load.until_more(20)
        served.run("up", "-d", "--wait")
        load.until_more(20)
    assert load.failed == []


def test_down_while_the_engine_is_away_leaves_nothing_once_it_is_back(
    served: Project, engine: Engine
) -> None:
    engine.kill()
    stopping = subprocess.Popen(
        [sys.executable, "-m", "kserve_local.cli.main", "down"], cwd=served.folder,
        env={**os.environ, **served.env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(1.0)
    engine.start()
    stopping.wait(90)
    served.run("down")
