"""Models in images, the whole way: YAML to an answer, without and with a Docker engine."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.images import Image, layer, model_layer, push
from tests.integration.project import Project, project, sample
from tests.integration.registry_world import LOGIN, registry_of_ana

pytestmark = pytest.mark.skipif(
    shutil.which("docker-registry") is None, reason="needs Debian's docker-registry"
)
IRIS = {"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]}


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A registry that has the iris sample as an image `iris:v1`, and `empty:v1` without a model."""
    login = f"{LOGIN.username}:{LOGIN.password}"
    model = model_layer(sample("sklearn-iris", tmp_path / "sample") / "model")
    with registry_of_ana(tmp_path / "registry") as name:
        push(name, "iris", "v1", Image((layer({"etc/os": b"x"}), model)), login=login)
        push(name, "empty", "v1", Image((layer({"models": None}),)), login=login)
        yield name


def manifest(registry: str, uri: str, *, name: str = "iris") -> str:
    auth = base64.b64encode(f"{LOGIN.username}:{LOGIN.password}".encode()).decode()
    config = json.dumps({"auths": {registry: {"auth": auth}}})
    return f"""\
apiVersion: v1
kind: Secret
type: kubernetes.io/dockerconfigjson
metadata: {{name: registry}}
stringData:
  .dockerconfigjson: '{config}'
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: puller}}
imagePullSecrets: [{{name: registry}}]
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
spec:
  predictor:
    serviceAccountName: puller
    model:
      modelFormat: {{name: sklearn}}
      storageUri: {uri}
"""


def home(tmp_path: Path) -> dict[str, str]:
    """Return an environment with a cache of its own and nobody's logins."""
    return {"XDG_CACHE_HOME": str(tmp_path / "cache"), "DOCKER_CONFIG": str(tmp_path)}


def pod_of(p: Project) -> dict[str, object]:
    (pod,) = json.loads(p.run("get", "pods", "-o", "json").stdout)["items"]
    return dict(pod)


def test_a_modelcar_serves(registry: str, tmp_path: Path) -> None:
    """As on a cluster: two of two containers, the sidecar among them."""
    with project(tmp_path / "p", env=home(tmp_path)) as p:
        (p.folder / "iris.yaml").write_text(manifest(registry, f"oci://{registry}/iris:v1"))
        p.up()
        assert p.call("/v1/models/iris:predict", IRIS) == (200, {"predictions": [1, 1]})
        table = p.run("get", "pods").stdout
        assert " 2/2 " in table
        assert " Running " in table
        pod = pod_of(p)
        spec, status = pod["spec"], pod["status"]
        assert [c["name"] for c in spec["containers"]] == ["kserve-container", "modelcar"]
        assert [c["name"] for c in spec["initContainers"]] == ["modelcar-init"]
        assert spec["shareProcessNamespace"] is True
        (init,) = status["initContainerStatuses"]
        assert init["state"]["terminated"]["exitCode"] == 0
        server, car = status["containerStatuses"]
        assert server["name"], car["name"] == ("kserve-container", "modelcar")
        assert car["ready"]
        assert car["state"]["running"]["startedAt"] >= init["state"]["terminated"]["finishedAt"]
        log = p.run("logs", "iris", "-c", "modelcar-init").stdout
        assert f"Successfully copied oci://{registry}/iris:v1 to /mnt/models" in log
        assert LOGIN.password not in log
        assert p.run("logs", "iris", "-c", "modelcar").stdout == ""
        assert LOGIN.password not in (p.state / "logs" / "supervisor.log").read_text()


@pytest.mark.parametrize("mode", ["native", "fetch"])
def test_the_other_modes_serve(registry: str, tmp_path: Path, mode: str) -> None:
    with project(tmp_path / "p", env=home(tmp_path)) as p:
        (p.folder / "iris.yaml").write_text(manifest(registry, f"oci+{mode}://{registry}/iris:v1"))
        p.up()
        assert p.call("/v1/models/iris:predict", IRIS) == (200, {"predictions": [1, 1]})
        assert " 1/1 " in p.run("get", "pods").stdout
