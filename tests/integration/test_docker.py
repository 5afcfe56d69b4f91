"""Images without a program, in Docker, beside services that run as processes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kserve_local.backends import docker_pause
from tests.integration.project import NO_DOCKER, Project, project, sample, wait_until

pytestmark = pytest.mark.docker

IRIS = {"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]}
# Answers with what another service, a process, says about its model.
SERVER = """import http.server, signal, sys, urllib.request
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        host = "http://sklearn-iris-predictor.default.svc.cluster.local"
        body = urllib.request.urlopen(host + "/v1/models/sklearn-iris", timeout=10).read()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("up", flush=True)
http.server.HTTPServer(("", 8080), Handler).serve_forever()
"""
YAML = """apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{name: any}}
spec:
  predictor:
    containers:
      - name: kserve-container
        image: {image}
        imagePullPolicy: Never
        command: [python3, /code/server.py]
        ports: [{{containerPort: 8080}}]
        volumeMounts: [{{name: code, mountPath: /code, readOnly: true}}]
        resources: {{limits: {{memory: 128Mi}}}}
        securityContext: {{runAsUser: 1000, capabilities: {{drop: [ALL]}}}}
    volumes: [{{name: code, configMap: {{name: code}}}}]
"""
IMAGE = "python:3.11-slim"


def containers(own: Project) -> list[str]:
    """Return what the engine still has of a project."""
    label = f"label=kserve-local.dev/state={own.state}"
    command = ["docker", "ps", "--all", "--quiet", "--filter", label]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[Project]:
    engine = {"DOCKER_HOST": os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")}
    with project(sample("sklearn-iris", tmp_path / "mixed"), env=engine) as own:
        indented = "\n".join("    " + line for line in SERVER.splitlines())
        code = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: code}\ndata:\n  server.py: |\n"
        (own.folder / "any.yaml").write_text(f"{code}{indented}\n---\n{YAML.format(image=IMAGE)}")
        yield own
    assert containers(own) == []


def backend_of(own: Project, name: str) -> str:
    words = ("get", "pods", "-o", "json")
    found = [
        p for p in json.loads(own.run(*words).stdout)["items"]
        if p["metadata"]["labels"]["serving.kserve.io/inferenceservice"] == name
    ]  # fmt: skip
    return str(found[0]["metadata"]["annotations"].get("kserve-local.dev/backend", "process"))


def test_a_container_and_a_process_reach_each_other_by_name(mixed: Project) -> None:
    mixed.up()
    assert (backend_of(mixed, "any"), backend_of(mixed, "sklearn-iris")) == ("docker", "process")
    host = "any-predictor.default.svc.cluster.local"
    assert mixed.call("/", host=host) == (200, {"name": "sklearn-iris", "ready": True})
    assert mixed.call("/v1/models/sklearn-iris:predict", IRIS) == (200, {"predictions": [1, 1]})
    assert mixed.service("any")["memory"] > 1 << 20
    assert "up" in mixed.run("logs", "any").stdout.splitlines()[0]
    mixed.run("down")
    assert containers(mixed) == []


def test_only_the_projects_own_network_is_heard_where_no_token_is_asked(mixed: Project) -> None:
    """A container of somebody else's reaches the address, and gets nothing."""
    mixed.up()
    words = ["docker", "network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}"]
    (network,) = networks(mixed)
    address = subprocess.check_output([*words, network], text=True).strip()
    call = (
        "import http.client\n"
        f"c = http.client.HTTPConnection({address!r}, 80, timeout=10)\n"
        "c.request('GET', '/v2/models/sklearn-iris', headers={'Host': 'sklearn-iris.default'})\n"
        "print(c.getresponse().status)\n"
    )
    ran = {
        where: subprocess.run(
            ["docker", "run", "--rm", "--network", where, IMAGE, "python3", "-c", call],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        for where in (network, "bridge")
    }
    assert ran[network].stdout == "200\n", ran[network].stderr
    assert ran["bridge"].stdout == ""
    assert "RemoteDisconnected" in ran["bridge"].stderr or "reset" in ran["bridge"].stderr


def test_a_runtime_runs_in_docker_or_as_processes_beside_the_others(mixed: Project) -> None:
    """`runtimes.NAME.backend` goes before the project's own `backend`."""
    config = mixed.folder / "kserve-local.yaml"
    config.write_text("backend: docker\nruntimes: {kserve-sklearnserver: {backend: process}}\n")
    mixed.up()
    assert (backend_of(mixed, "any"), backend_of(mixed, "sklearn-iris")) == ("docker", "process")
    assert mixed.call("/v1/models/sklearn-iris:predict", IRIS) == (200, {"predictions": [1, 1]})
    mixed.run("down")
    (mixed.folder / "any.yaml").unlink()
    config.write_text("backend: process\nruntimes: {kserve-sklearnserver: {backend: docker}}\n")
    mixed.up()
    assert backend_of(mixed, "sklearn-iris") == "docker"
    assert mixed.call("/v1/models/sklearn-iris:predict", IRIS) == (200, {"predictions": [1, 1]})


POD_FEATURES = """apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{name: any}}
spec:
  predictor:
    hostAliases: [{{ip: 127.0.0.1, hostnames: [me.test]}}]
    initContainers:
      - name: fill
        image: {image}
        imagePullPolicy: Never
        command: [python3, -c, "open('/dev/shm/word', 'w').write('filled')"]
        volumeMounts: [{{name: fast, mountPath: /dev/shm}}]
    containers:
      - name: kserve-container
        image: {image}
        imagePullPolicy: Never
        command: [python3, /code/server.py]
        env: [{{name: IP, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}]
        ports: [{{containerPort: 8080}}]
        volumeMounts:
          - {{name: code, mountPath: /code, readOnly: true}}
          - {{name: fast, mountPath: /dev/shm}}
        securityContext: {{runAsUser: 1000}}
    volumes:
      - {{name: code, configMap: {{name: code}}}}
      - {{name: fast, emptyDir: {{medium: Memory}}}}
"""
FACTS = """import http.server, json, os, signal, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        open("/dev/shm/own", "w").write("x")
        own = socket.gethostbyname(socket.gethostname())
        facts = {"word": open("/dev/shm/word").read(), "ip": os.environ["IP"] == own,
                 "alias": socket.gethostbyname("me.test"),
                 "memory": open("/proc/mounts").read().count("tmpfs /dev/shm tmpfs")}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(facts).encode())
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
http.server.HTTPServer(("", 8080), Handler).serve_forever()
"""


def test_init_containers_memory_aliases_and_the_pods_address(mixed: Project) -> None:
    indented = "\n".join("    " + line for line in FACTS.splitlines())
    code = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: code}\ndata:\n  server.py: |\n"
    manifest = f"{code}{indented}\n---\n{POD_FEATURES.format(image=IMAGE)}"
    (mixed.folder / "any.yaml").write_text(manifest)
    mixed.up()
    wanted = {"word": "filled", "ip": True, "alias": "127.0.0.1", "memory": 1}
    assert mixed.call("/serving/default/any/") == (200, wanted)
    # What the Pod's first container left in memory outlives a container, but not the Pod.
    [own] = mixed.service("any")["revisions"][0]["pids"]
    os.kill(own, signal.SIGKILL)
    wait_until(lambda: mixed.service("any")["restarts"] == 1, why="the restart is counted")
    wait_until(lambda: mixed.call("/serving/default/any/") == (200, wanted), why="it is the same")
    of_pod = list(Path("/dev/shm").glob(f"kserve-local-{os.geteuid()}/*.fast"))
    assert len(of_pod) == 1
    mixed.run("down")
    assert not of_pod[0].exists()


def test_kills_lose_no_container_and_leave_none(mixed: Project) -> None:
    mixed.up()
    before = containers(mixed)
    os.kill(int(mixed.run_file["pid"]), signal.SIGKILL)
    assert mixed.call("/serving/default/any/")[0] == 200
    mixed.run("up", "-d", "--wait")
    assert sorted(containers(mixed)) == sorted(before)
    # One container dies: it is started again, and who asks meanwhile waits.
    [own] = mixed.service("any")["revisions"][0]["pids"]
    os.kill(own, signal.SIGKILL)
    assert mixed.call("/serving/default/any/")[0] in (200, 502)
    wait_until(lambda: mixed.call("/serving/default/any/")[0] == 200, why="the restarted answers")
    wait_until(lambda: mixed.service("any")["restarts"] == 1, why="the restart is counted")
    os.kill(int(mixed.run_file["pid"]), signal.SIGKILL)
    mixed.run("down")
    assert containers(mixed) == []


def test_up_waits_for_a_container_that_went_with_its_supervisor(mixed: Project) -> None:
    mixed.up()
    os.kill(int(mixed.run_file["pid"]), signal.SIGKILL)
    words = ["docker", "ps", "--quiet", "--filter", f"label=kserve-local.dev/state={mixed.state}",
             "--filter", "label=kserve-local.dev/container=kserve-container"]  # fmt: skip
    [container] = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    subprocess.run(["docker", "rm", "--force", container], check=True, capture_output=True)
    mixed.run("up", "-d", "--wait")
    assert mixed.call("/serving/default/any/")[0] == 200


def networks(own: Project) -> list[str]:
    label = f"label=kserve-local.dev/state={own.state}"
    command = ["docker", "network", "ls", "--quiet", "--filter", label]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def test_down_after_a_kill_takes_the_network_too_when_no_pod_is_left(mixed: Project) -> None:
    mixed.up()
    mixed.run("delete", "isvc", "any")
    wait_until(lambda: containers(mixed) == [], why="its containers are gone")
    os.kill(int(mixed.run_file["pid"]), signal.SIGKILL)
    assert len(networks(mixed)) == 1
    mixed.run("down")
    assert networks(mixed) == []


def test_containers_of_a_project_whose_folder_is_gone_can_be_removed(mixed: Project) -> None:
    mixed.up()
    os.kill(int(mixed.run_file["pid"]), signal.SIGKILL)
    aside = mixed.folder / "aside"
    mixed.state.rename(aside)
    assert containers(mixed)
    assert f"removed containers of {mixed.state}" in mixed.run("down", "--all").stderr
    assert containers(mixed) == []
    if mixed.state.exists():
        mixed.state.rmdir()
    aside.rename(mixed.state)


def test_doctor_asks_the_engine(mixed: Project) -> None:
    def told() -> tuple[str, str]:
        checks = mixed.json("doctor", check=None)["checks"]
        return next((c["level"], c["message"]) for c in checks if c["name"] == "docker")

    assert "answers" in told()[1]
    mixed.env["DOCKER_HOST"] = NO_DOCKER
    level, message = told()
    assert level == "warn"
    assert "no Docker engine answers" in message
    for backend, level in (("process", "ok"), ("docker", "fail")):
        (mixed.folder / "kserve-local.yaml").write_text(f"backend: {backend}\n")
        assert told()[0] == level


def test_an_image_that_must_not_be_root_and_is_is_refused(mixed: Project) -> None:
    manifest = mixed.folder / "any.yaml"
    manifest.write_text(manifest.read_text().replace("runAsUser: 1000", "runAsNonRoot: true"))
    done = mixed.up(check=4)
    text = "CreateContainerConfigError: container has runAsNonRoot and image will run as root"
    assert text in done.stderr
    assert "Next step: set runAsUser" in done.stderr


def test_an_image_that_cannot_be_had_is_said_in_kubelets_words(mixed: Project) -> None:
    manifest = mixed.folder / "any.yaml"
    manifest.write_text(manifest.read_text().replace(IMAGE, "nobody/made:this"))
    done = mixed.up(check=4)
    text = 'Container image "nobody/made:this" is not present with pull policy of Never'
    assert text in done.stderr
    mixed.run("down")
    once = manifest.read_text()
    manifest.write_text(once.replace("nobody/made:this", '"Bad Name!!"'))
    assert "Failed to apply default image tag" in mixed.up(check=4).stderr
    assert '"InvalidImageName"' in mixed.run("get", "pods", "-o", "json").stdout
    mixed.run("down")
    manifest.write_text(once.replace("Never", "IfNotPresent"))
    assert "nothing is pulled with --offline" in mixed.up("--offline", check=4).stderr
    mixed.run("down")
    manifest.write_text(manifest.read_text().replace("IfNotPresent", "Never"))
    mixed.up(check=4)
    told = mixed.run("status").stdout
    assert text in told
    assert "no stand-in for this image" in told


def saved(name: str, architecture: str) -> bytes:
    """Return a program for a kind of machine as an image, in the form of `docker save`."""
    layer = docker_pause.archive(architecture)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(manifest).encode(),
        "layer.tar": layer,
    }
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return whole.getvalue()


def test_an_image_for_another_machine_is_named_as_such(mixed: Project) -> None:
    other = "arm64" if platform.machine() == "x86_64" else "amd64"
    name = f"foreign-{os.getpid()}:1"
    subprocess.run(["docker", "load"], input=saved(name, other), check=True, capture_output=True)
    try:
        text = (mixed.folder / "any.yaml").read_text().replace(IMAGE, name)
        (mixed.folder / "any.yaml").write_text(
            text.replace("command: [python3, /code/server.py]", "")
        )
        said = mixed.up(check=4).stderr
        assert f'image "{name}" is built for {other}, and this machine is ' in said
        step = "for another machine architecture: build or pull it for this one, e.g. docker pull"
        assert step in mixed.run("get", "pods", "-o", "json").stdout
        mixed.run("down")
    finally:
        subprocess.run(["docker", "rmi", "--force", name], check=True, capture_output=True)
