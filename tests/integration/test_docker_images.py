"""Images that are built here: our model servers', and the user's own."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.project import Project, project, sample, wait_until

pytestmark = pytest.mark.docker

ENGINE = {"DOCKER_HOST": os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")}
SERVER = """import http.server, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(open("src/word.json", "rb").read())
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
http.server.HTTPServer(("", 8080), Handler).serve_forever()
"""
DOCKERFILE = """FROM python:3.11-slim
WORKDIR /app
COPY . .
RUN echo built
USER 1000
ENTRYPOINT ["python3", "server.py"]
"""
CONFIG = 'images: {"my/words:dev": {context: code, reload: [src]}}\n'
MANIFEST = """apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: words}
spec:
  predictor:
    containers:
      - name: kserve-container
        image: my/words:dev
        ports: [{containerPort: 8080}]
        securityContext: {runAsNonRoot: true}
"""


@pytest.fixture
def words(tmp_path: Path) -> Iterator[Project]:
    folder = tmp_path / "words"
    code = folder / "code"
    (code / "src").mkdir(parents=True)
    (code / "Dockerfile").write_text(DOCKERFILE)
    (code / "server.py").write_text(SERVER)
    (code / "src" / "word.json").write_text('"one"')
    (folder / "kserve-local.yaml").write_text(CONFIG)
    (folder / "words.yaml").write_text(MANIFEST)
    with project(folder, env=ENGINE) as own:
        yield own


def test_a_kserve_runtime_runs_from_the_image_of_our_server(tmp_path: Path) -> None:
    with project(sample("sklearn-iris", tmp_path / "iris"), env=ENGINE) as own:
        own.run("images", "build", "sklearnserver")
        # Built before, so nothing else is needed of the network.
        own.up("--backend", "docker", "--offline")
        request = json.loads((own.folder / "request.json").read_text())
        wanted = json.loads((own.folder / "expected.json").read_text())
        assert own.call("/v1/models/sklearn-iris:predict", request) == (200, wanted)
        [pod] = json.loads(own.run("get", "pods", "-o", "json").stdout)["items"]
        stand_in = pod["metadata"]["annotations"]["kserve-local.dev/stand-in"]
        assert "the image of kserve-local's sklearnserver stands in for image" in stand_in
        [found] = [
            i for i in own.json("images", "list")["images"]
            if i["name"] == "sklearnserver" and i["current"]
        ]  # fmt: skip
        assert found["usedBy"] == 1
        # Nobody would fork from a warm parent here.
        assert [c for c in own.leftovers().values() if "zygote" in c] == []
        # One that a container uses stays.
        own.run("images", "prune")
        assert own.call("/v1/models/sklearn-iris:predict", request) == (200, wanted)
        assert own.run("down").returncode == 0


def test_with_upstream_images_the_one_that_is_named_runs(tmp_path: Path) -> None:
    with project(sample("sklearn-iris", tmp_path / "iris"), env=ENGINE) as own:
        flags = ("--backend", "docker", "--runtime-images", "upstream", "--offline")
        assert 'image "kserve/sklearnserver' in own.up(*flags, check=4).stderr
        own.run("down")


def test_source_of_the_users_is_built_once_and_seen_live(words: Project) -> None:
    words.up("--backend", "docker")
    assert words.call("/serving/default/words/") == (200, "one")
    (words.folder / "code" / "src" / "word.json").write_text('"two"')
    assert words.call("/serving/default/words/") == (200, "two")
    words.run("down")
    built = words.json("images", "build", "my/words:dev")["images"][0]
    assert built["built"] is True  # src is in the image, and was edited
    assert words.json("images", "build")["images"][0]["built"] is False
    names = [i["image"] for i in words.json("images", "list")["images"]]
    assert built["image"] in names
    # Out of date, it goes.
    (words.folder / "code" / "src" / "word.json").write_text('"three"')
    removed = [i["image"] for i in words.json("images", "prune")["removed"]]
    assert built["image"] in removed


def test_source_that_hangs_while_it_loads_says_where(words: Project) -> None:
    """The launcher is in the container too: its control socket names the user's own line."""
    code = words.folder / "code"
    (code / "src" / "weights.py").write_text("import time\ndef fetch():\n    time.sleep(600)\n")
    (code / "server.py").write_text("from src import weights\nweights.fetch()\n" + SERVER)
    # As an image does that has folders of its own to import from.
    (code / "Dockerfile").write_text(DOCKERFILE + "ENV PYTHONPATH=/app/src\n")
    (words.folder / "words.yaml").write_text(
        MANIFEST + "        startupProbe: {tcpSocket: {port: 8080}, failureThreshold: 300}\n"
    )
    told = words.up("--backend", "docker", "--timeout", "12s", check=5).stderr
    assert "MainThread is in src/weights.py, line 3, fetch()." in told
    service = words.service("words")
    assert "src/weights.py, line 3" in service["message"]
    # Another supervisor finds the container's socket by what the engine says.
    os.kill(int(words.run_file["pid"]), signal.SIGKILL)
    words.up("--timeout", "12s", check=5)
    assert "src/weights.py, line 3" in words.service("words")["message"]


def test_a_build_that_fails_is_told_with_its_last_lines(words: Project) -> None:
    recipe = words.folder / "code" / "Dockerfile"
    recipe.write_text(DOCKERFILE.replace("echo built", "echo no such thing >&2; exit 7"))
    done = words.up("--backend", "docker", check=4)
    assert "no such thing" in done.stderr
    # Docker's words, or Podman's.
    assert re.search(r"RUN echo no such .* returned a non-zero code: 7|exit status 7", done.stderr)

    def told() -> str:
        lines = words.run("status").stdout.splitlines()
        return next(line for line in lines if line.startswith("words "))

    # While it is built once more, that is told.
    wait_until(lambda: "no such thing" in told(), why="the column says why")
    recipe.unlink()
    words.run("down")
    assert "has no Dockerfile" in words.up("--backend", "docker", check=4).stderr


def test_a_dockerfile_that_needs_buildkit_is_built_with_it(words: Project) -> None:
    recipe = words.folder / "code" / "Dockerfile"
    recipe.write_text(
        DOCKERFILE.replace("RUN echo built", "RUN --mount=type=cache,target=/c echo built >/c/x")
    )
    # Debian's docker command, which has BuildKit's client; another may lack the plugin for it.
    words.env["PATH"] = f"/usr/bin:{os.environ['PATH']}"
    words.up("--backend", "docker")
    assert words.call("/serving/default/words/") == (200, "one")
    words.run("down")
    # What this builder's own frontend does not know is told in its words.
    recipe.write_text(DOCKERFILE.replace("RUN echo built", "RUN --mount=type=nothing true"))
    told = words.run("images", "build", "my/words:dev", check=None)
    assert told.returncode != 0
    assert "nothing" in told.stderr


def test_without_buildkits_client_the_way_out_is_told(words: Project) -> None:
    recipe = words.folder / "code" / "Dockerfile"
    recipe.write_text(DOCKERFILE.replace("RUN echo", "RUN --mount=type=cache,target=/c echo"))
    words.env["PATH"] = str(words.folder / "bin")
    told = words.run("images", "build", "my/words:dev", check=None).stderr
    assert "needs BuildKit, and there is no docker command" in told
    fake = words.folder / "bin" / "docker"
    fake.parent.mkdir()
    # As Docker's command says it from version 23 on.
    says = "ERROR: BuildKit is enabled but the buildx component is missing or broken."
    fake.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit 1\n")
    fake.chmod(0o755)
    told = words.run("images", "build", "my/words:dev", check=None).stderr
    assert "the docker command has no buildx plugin" in told
    assert "buildx plugin (Debian 12's docker.io needs no" in told
