"""A project on Podman, by its Docker-compatible socket: a private service with a store of its own,
so that nothing else on the machine notices.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.project import ENGINE, Project, project, wait_until

pytestmark = pytest.mark.docker

IMAGE = "python:3.11-slim"
SERVER = """import http.server, os, signal, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        own = socket.gethostbyname(socket.gethostname()) == os.environ.get("IP", "")
        self.wfile.write(b"own" if own else b"other")
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
        env: [{{name: IP, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}]
        ports: [{{containerPort: 8080}}]
        resources: {{limits: {{memory: 256Mi, cpu: "1"}}}}
"""
# Both need BuildKit in Docker; Podman's builder has them, and needs no docker command.
DOCKERFILE = f"""FROM {IMAGE}
WORKDIR /app
COPY . .
RUN --mount=type=cache,target=/kept echo built >/kept/x
USER 1000
ENTRYPOINT ["python3", "server.py"]
"""
# A machine that is a container itself may not raise limits to what Podman gives by default.
LIMITS = '[containers]\ndefault_ulimits = ["nofile={0}:{0}", "nproc={1}:{1}"]\n'


@dataclass
class Podman:
    """A Podman service on a socket and in folders of its own."""

    folder: Path

    @property
    def host(self) -> str:
        return f"unix://{self.folder}/podman.sock"

    @property
    def words(self) -> list[str]:
        return [
            "podman", "--root", str(self.folder / "root"), "--runroot", str(self.folder / "run"),
            "--network-config-dir", str(self.folder / "networks"),
        ]  # fmt: skip

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "CONTAINERS_CONF": str(self.folder / "containers.conf")}

    def start(self) -> subprocess.Popen[bytes]:
        """Start the service, and wait until it answers."""
        files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65536)
        (self.folder / "containers.conf").write_text(LIMITS.format(files, 4096))
        service = ["system", "service", "--time=0", self.host]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [*self.words, *service], stdout=log, stderr=log, env=self.environ
            )
        wait_until((self.folder / "podman.sock").exists, why="Podman's socket")
        return process

    def ask(self, *words: str) -> list[str]:
        """Return the words that a podman command prints."""
        done = subprocess.run(
            [*self.words, *words], check=True, capture_output=True, text=True, env=self.environ
        )
        return done.stdout.split()

    def containers(self) -> list[str]:
        return sorted(self.ask("ps", "--all", "--quiet"))


@pytest.fixture(scope="module")
def engine() -> Iterator[Podman]:
    # Sockets have short paths.
    folder = Path(tempfile.mkdtemp(prefix="kl-podman-", dir="/tmp"))
    (folder / "networks").mkdir()
    made = Podman(folder)
    process = made.start()
    try:
        with subprocess.Popen(
            ["docker", "--host", ENGINE, "save", IMAGE], stdout=subprocess.PIPE
        ) as saved:
            load = [*made.words, "load", "--quiet"]
            subprocess.run(load, stdin=saved.stdout, check=True, env=made.environ)
        yield made
        assert made.containers() == []
    finally:
        process.terminate()
        process.wait(30)
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for place in reversed([at for at in mounted if at.startswith(str(folder))]):
            subprocess.run(["umount", "--lazy", place], check=True)
        shutil.rmtree(folder)


@pytest.fixture
def served(tmp_path: Path, engine: Podman) -> Iterator[Project]:
    folder = tmp_path / "any"
    folder.mkdir()
    (folder / "any.yaml").write_text(MANIFEST)
    with project(folder, env={"DOCKER_HOST": engine.host}) as own:
        own.up()
        yield own
    assert engine.containers() == []
    assert engine.ask("network", "ls", "--quiet", "--filter", "label=kserve-local.dev/state") == []


def test_a_service_answers_knows_its_address_and_is_measured(served: Project) -> None:
    assert served.call("/serving/default/any/") == (200, "own")
    service = served.service("any")
    assert service["memory"] > 1 << 20
    assert service["ready"]


def test_a_killed_supervisor_costs_no_container(served: Project, engine: Podman) -> None:
    before = engine.containers()
    os.kill(int(served.run_file["pid"]), signal.SIGKILL)
    assert served.call("/serving/default/any/")[0] == 200
    served.run("up", "-d", "--wait")
    # One that was kept in reserve is nobody's after the kill.
    assert set(engine.containers()) & set(before)
    assert served.service("any")["restarts"] == 0
    assert served.call("/serving/default/any/") == (200, "own")


def test_a_killed_container_is_started_again_also_without_its_sandbox(
    served: Project, engine: Podman
) -> None:
    [pid] = served.service("any")["revisions"][0]["pids"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: served.service("any")["restarts"] == 1, why="the restart is counted")
    wait_until(lambda: served.call("/serving/default/any/") == (200, "own"), why="it answers")
    # Podman removes no sandbox before what has joined it.
    [sandbox] = engine.ask(
        "ps", "--quiet", "--filter", "label=io.kubernetes.container.name=POD", "--filter",
        f"label=kserve-local.dev/state={served.state}", "--filter",
        f"label=io.kubernetes.pod.uid={pod_uid(served)}",
    )  # fmt: skip
    engine.ask("kill", sandbox)
    # What was in it is ended with it, and all of it started again.
    wait_until(lambda: served.service("any")["restarts"] == 2, why="the restart is counted")
    wait_until(lambda: served.call("/serving/default/any/") == (200, "own"), why="it answers")


def pod_uid(own: Project) -> str:
    [pod] = json.loads(own.run("get", "pods", "-o", "json").stdout)["items"]
    return str(pod["metadata"]["uid"])


def test_source_is_built_without_a_docker_command(tmp_path: Path, engine: Podman) -> None:
    folder = tmp_path / "built"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "Dockerfile").write_text(DOCKERFILE)
    (folder / "code" / "server.py").write_text(SERVER)
    (folder / "kserve-local.yaml").write_text('images: {"my/words:dev": {context: code}}\n')
    with project(folder, env={"DOCKER_HOST": engine.host, "PATH": "/nowhere"}) as own:
        [built] = own.json("images", "build")["images"]
        [listed] = own.json("images", "list")["images"]
        assert (built["built"], listed["image"]) == (True, built["image"])
        assert [i["image"] for i in own.json("images", "prune", "--all")["removed"]]
