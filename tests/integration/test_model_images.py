"""Models in images, the whole way: YAML to an answer, without and with a Docker engine."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.fakes.images import Image, layer, model_layer, push
from tests.integration.project import ENGINE, Project, project, sample
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


def pod_of(p: Project) -> dict[str, Any]:
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
        assert (server["name"], car["name"]) == ("kserve-container", "modelcar")
        assert car["ready"]
        assert car["state"]["running"]["startedAt"] >= init["state"]["terminated"]["finishedAt"]
        log = p.run("logs", "iris", "-c", "modelcar-init").stdout
        assert f"Successfully copied oci://{registry}/iris:v1 to /mnt/models" in log
        assert LOGIN.password not in log
        assert p.run("logs", "iris", "-c", "modelcar").stdout == ""
        assert LOGIN.password not in (p.state / "logs" / "supervisor.log").read_text()
        os.kill(p.run_file["pid"], signal.SIGKILL)
        p.up()
        again = pod_of(p)
        assert again["metadata"]["uid"] == pod["metadata"]["uid"]
        assert [c["restartCount"] for c in again["status"]["containerStatuses"]] == [0, 0]
        assert p.call("/v1/models/iris:predict", IRIS) == (200, {"predictions": [1, 1]})


@pytest.mark.parametrize("mode", ["native", "fetch"])
def test_the_other_modes_serve(registry: str, tmp_path: Path, mode: str) -> None:
    with project(tmp_path / "p", env=home(tmp_path)) as p:
        (p.folder / "iris.yaml").write_text(manifest(registry, f"oci+{mode}://{registry}/iris:v1"))
        p.up()
        assert p.call("/v1/models/iris:predict", IRIS) == (200, {"predictions": [1, 1]})
        assert " 1/1 " in p.run("get", "pods").stdout


def test_several_images_in_one_pod(registry: str, tmp_path: Path) -> None:
    with project(tmp_path / "p", env=home(tmp_path)) as p:
        text = manifest(registry, f"oci://{registry}/iris:v1")
        one, _, _ = text.rpartition("      storageUri:")
        (p.folder / "iris.yaml").write_text(
            f"{one}    storageUris:\n    - {{uri: 'oci://{registry}/iris:v1'}}\n"
            f"    - {{uri: 'oci://{registry}/iris:v1', mountPath: /mnt/more/models}}\n"
        )
        p.up()
        assert p.call("/v1/models/iris:predict", IRIS) == (200, {"predictions": [1, 1]})
        assert " 3/3 " in p.run("get", "pods").stdout


# Each case: the storageUri, where the Pod says it, and the words.
FAILURES = {
    "no image": (
        "oci://{registry}/iris:v9",
        "Init:ErrImagePull",
        '{registry} has no "v9" of iris',
        "check name and tag",
    ),
    "no model": (
        "oci://{registry}/empty:v1",
        "Init:Error",
        "Image {registry}/empty:v1 has no folder /models, or nothing is in it",
        "put the model there",
    ),
    "native, no image": (
        "oci+native://{registry}/iris:v9",
        "ErrImagePull",
        'Unable to fetch image "{registry}/iris:v9"',
        "check name and tag",
    ),
    "fetch, no image": (
        "oci+fetch://{registry}/iris:v9",
        "Init:Error",
        '{registry} has no "v9" of iris',
        "check name and tag",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_fails_is_told(registry: str, tmp_path: Path, case: str) -> None:
    uri, where, words, hint = (text.format(registry=registry) for text in FAILURES[case])
    with project(tmp_path / "p", env=home(tmp_path)) as p:
        (p.folder / "iris.yaml").write_text(manifest(registry, uri))
        said = p.up(check=4)
        assert words in said.stdout + said.stderr
        assert f"Next step: {hint}" in said.stdout + said.stderr
        table = p.run("get", "pods").stdout
        # The back-off before the next try may have begun.
        later = where.replace("ErrImagePull", "ImagePullBackOff")
        later = later.replace("Error", "CrashLoopBackOff")
        assert any(f" {state} " in table for state in (where, later)), table
        assert words.partition("fetch image ")[2].strip('"') in json.dumps(p.isvc("iris")["status"])


def test_without_login_the_registry_refuses(registry: str, tmp_path: Path) -> None:
    with project(tmp_path / "p", env=home(tmp_path)) as p:
        text = manifest(registry, f"oci://{registry}/iris:v1")
        text = text.replace("imagePullSecrets: [{name: registry}]", "")
        (p.folder / "iris.yaml").write_text(text)
        said = p.run("validate", "--deep", check=None)
        assert f"{registry} refuses it (401 Unauthorized)" in said.stdout + said.stderr
        said = p.up(check=4)
        assert f"{registry} refuses it (401 Unauthorized)" in said.stdout + said.stderr
        (p.folder / "iris.yaml").write_text(manifest(registry, f"oci://{registry}/iris:v1"))
        said = p.run("validate", "--deep")
        assert "refuses" not in said.stdout + said.stderr


def test_a_mirror_goes_before_the_registry(tmp_path: Path) -> None:
    """A folder in the place of an image, also offline; nothing is asked."""
    with project(tmp_path / "p", env=home(tmp_path)) as p:
        sample("sklearn-iris", tmp_path / "sample")
        shutil.copytree(tmp_path / "sample" / "model", p.folder / "models" / "iris:v1")
        (p.folder / "kserve-local.yaml").write_text(
            "storage: {mirrors: {'oci://registry.invalid/': ./models/}}\n"
        )
        for mode in ("", "+native"):
            uri = f"oci{mode}://registry.invalid/iris:v1"
            (p.folder / "iris.yaml").write_text(manifest("registry.invalid", uri))
            p.up("--offline")
            assert p.call("/v1/models/iris:predict", IRIS) == (200, {"predictions": [1, 1]})


@pytest.fixture
def built(tmp_path: Path) -> Iterator[str]:
    """An image that was made on this machine's engine, and is nowhere else."""
    name = "localhost:1/iris-model"
    model = sample("sklearn-iris", tmp_path / "sample") / "model"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.add(model, "models")
    with docker.APIClient(base_url=ENGINE, timeout=60) as client:
        client.import_image_from_data(content.getvalue(), repository=name, tag="latest")
        yield name
        client.remove_image(f"{name}:latest", force=True)


@pytest.mark.docker
@pytest.mark.parametrize("backend", ["auto", "docker"])
@pytest.mark.parametrize("mode", ["", "+native"])
def test_a_built_image_serves(built: str, tmp_path: Path, backend: str, mode: str) -> None:
    """`docker build -t my-model .` is all that it takes, whatever runs the server."""
    env = {**home(tmp_path), "DOCKER_HOST": ENGINE, "KSERVE_LOCAL_BACKEND": backend}
    with project(tmp_path / "p", env=env) as p:
        (p.folder / "iris.yaml").write_text(manifest("none", f"oci{mode}://{built}"))
        p.run("validate", "--deep")
        p.up("--timeout", "10m")
        assert p.call("/v1/models/iris:predict", IRIS) == (200, {"predictions": [1, 1]})
        assert (" 1/1 " if mode else " 2/2 ") in p.run("get", "pods").stdout
    with docker.APIClient(base_url=ENGINE, timeout=60) as client:
        assert not client.containers(all=True, filters={"label": "kserve-local.dev/reads-image"})


@pytest.mark.docker
def test_without_an_engine_a_built_image_is_not_found(built: str, tmp_path: Path) -> None:
    """`--backend process` does without Docker altogether."""
    env = {**home(tmp_path), "DOCKER_HOST": ENGINE, "KSERVE_LOCAL_BACKEND": "process"}
    with project(tmp_path / "p", env=env) as p:
        (p.folder / "iris.yaml").write_text(manifest("none", f"oci://{built}"))
        assert "Connection refused" in p.up(check=4).stderr
