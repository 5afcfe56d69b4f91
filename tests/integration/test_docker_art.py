"""`explainer.art` in Docker: the arguments that its image is started with, and what it asks.

The image is a small one of our own under the published name, which takes those arguments and no
others. What was tried with KServe's own server is in docs/compatibility.md.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.project import ENGINE, Project, project, sample

pytestmark = pytest.mark.docker

# Strict where KServe's server is lenient, so that an argument too many is seen here.
SERVER = """
import argparse, http.client, http.server, json, signal, sys

parser = argparse.ArgumentParser()
for name in ("model_name", "predictor_host", "adversary_type", "nb_classes"):
    parser.add_argument("--" + name, required=True)
for name in ("http_port", "workers", "max_iter"):
    parser.add_argument("--" + name, type=int)
parser.add_argument("--storage_uri")
args = parser.parse_args()

def flat(value):
    return [v for part in value for v in flat(part)] if isinstance(value, list) else [value]

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        assert self.path == f"/v1/models/{args.model_name}:explain", self.path
        image, label = json.loads(self.rfile.read(int(self.headers["content-length"])))["instances"]
        asked = json.dumps({"instances": [flat(image)]})
        predictor = http.client.HTTPConnection(args.predictor_host, timeout=20)
        predictor.request("POST", f"/v1/models/{args.model_name}:predict", asked)
        answer = json.loads(predictor.getresponse().read())
        [prediction] = answer["predictions"]
        told = {"prediction": prediction, "robust": [prediction] == label, "args": sys.argv[1:]}
        body = json.dumps({"explanations": told}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
http.server.HTTPServer(("", args.http_port), Handler).serve_forever()
"""
DOCKERFILE = """FROM python:3.11-slim
COPY server.py /
ENTRYPOINT ["python3", "/server.py"]
"""
# One measurement a pixel: an image of two by two, in KServe's form.
IMAGE = [[[[6.8], [2.8]], [[4.8], [1.4]]]]


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The tag of an image `kserve/art-explainer` that the engine has."""
    folder = tmp_path_factory.mktemp("art")
    (folder / "server.py").write_text(SERVER)
    (folder / "Dockerfile").write_text(DOCKERFILE)
    tag = f"test-{os.getpid()}"
    image = f"kserve/art-explainer:{tag}"
    subprocess.run(["docker", "build", "-t", image, folder], check=True, capture_output=True)
    yield tag
    subprocess.run(["docker", "rmi", "--force", image], check=True, capture_output=True)


@pytest.fixture
def iris(tmp_path: Path) -> Iterator[Project]:
    with project(sample("sklearn-iris", tmp_path / "iris"), env={"DOCKER_HOST": ENGINE}) as own:
        yield own


def serve(own: Project, explainer: dict[str, Any]) -> None:
    """Serve the sample with this explainer."""
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": "./model"}
    isvc = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "iris"},
        "spec": {"predictor": {"model": model}, "explainer": explainer},
    }
    (own.folder / "manifest.yaml").write_text(json.dumps(isvc))
    own.up()


def explained(own: Project) -> dict[str, Any]:
    """Return what the explainer says."""
    request = json.dumps({"instances": [IMAGE, [1]]})
    answer = json.loads(own.run("predict", "iris", "--explain", request).stdout)
    return dict(answer["explanations"])


@pytest.mark.parametrize("backend", ["auto", "docker"])
def test_an_art_explainer_asks_its_predictor(iris: Project, version: str, backend: str) -> None:
    """A process or a container beside it: the same name leads there."""
    (iris.folder / "kserve-local.yaml").write_text(f"backend: {backend}\n")
    config = {"nb_classes": "3", "max_iter": "5"}
    serve(iris, {"art": {"type": "SquareAttack", "runtimeVersion": version, "config": config}})
    assert explained(iris) == {
        "prediction": 1,
        "robust": True,
        "args": [
            "--model_name", "iris", "--http_port", "8080",
            "--predictor_host", "iris-predictor.default", "--adversary_type", "SquareAttack",
            "--max_iter", "5", "--nb_classes", "3",
        ],
    }  # fmt: skip
    # Its own component, by its own name and by the service's path.
    body = {"instances": [IMAGE, [2]]}
    host = "iris-explainer.default.example.com"
    for how in ({"host": host}, {}):
        status, answer = iris.call("/v1/models/iris:explain", body, **how)
        assert (status, answer["explanations"]["robust"]) == (200, False)
    components = {c["component"]: c["state"] for c in iris.service("iris")["components"]}
    assert components == {"predictor": "Ready", "explainer": "Ready"}


def test_every_argument_that_the_controller_can_add(iris: Project, version: str) -> None:
    """A model of its own, a limit of requests, and the user's own arguments, which come twice."""
    art = {
        "type": "SquareAttack",
        "runtimeVersion": version,
        "storageUri": "./model",
        "args": ["--max_iter", "7"],
        "config": {"nb_classes": "3"},
    }
    serve(iris, {"containerConcurrency": 1, "art": art})
    assert explained(iris)["args"] == [
        "--model_name", "iris", "--http_port", "8080",
        "--predictor_host", "iris-predictor.default", "--workers", "1",
        "--storage_uri", "/mnt/models", "--adversary_type", "SquareAttack",
        "--nb_classes", "3", "--max_iter", "7", "--max_iter", "7",
    ]  # fmt: skip
