"""kubectl itself, against the API server: what a KServe user types must work as on a cluster."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kserve_local.api import scheme
from kserve_local.api.meta import Key
from tests.integration.apiserver_world import World, running

pytestmark = pytest.mark.kubectl

ISVC = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: iris
  labels: {team: a}
spec:
  predictor:
    minReplicas: 1
    model:
      modelFormat: {name: sklearn}
      storageUri: gs://bucket/model
"""
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: nginx}]}
"""


@dataclass
class Kubectl:
    """kubectl with the server's kubeconfig and a home of its own."""

    world: World
    home: Path

    async def run(self, *args: str, stdin: str = "") -> tuple[int, str, str]:
        """Return exit status, stdout and stderr."""
        process = await self.start(*args)
        out, err = await process.communicate(stdin.encode())
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def start(self, *args: str) -> asyncio.subprocess.Process:
        """Start kubectl, its stdin and outputs being pipes."""
        config = str(self.world.folder / "kubeconfig")
        return await asyncio.create_subprocess_exec(
            "kubectl",
            *args,
            env={**os.environ, "KUBECONFIG": config, "HOME": str(self.home)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def ok(self, *args: str, stdin: str = "") -> str:
        """Return stdout of a command that must succeed."""
        status, out, err = await self.run(*args, stdin=stdin)
        assert status == 0, f"kubectl {' '.join(args)}: {err}"
        return out

    async def fails(self, *args: str, stdin: str = "") -> str:
        """Return stderr of a command that must fail."""
        status, _, err = await self.run(*args, stdin=stdin)
        assert status != 0, f"kubectl {' '.join(args)} did not fail"
        return err


@pytest.fixture
async def kubectl(tmp_path: Path) -> AsyncIterator[Kubectl]:
    home = tmp_path / "home"
    home.mkdir()
    async with running(tmp_path) as world:
        yield Kubectl(world, home)


async def test_apply_from_first_to_last(kubectl: Kubectl) -> None:
    name = "inferenceservice.serving.kserve.io/iris"
    assert await kubectl.ok("apply", "-f", "-", stdin=ISVC) == f"{name} created\n"
    assert await kubectl.ok("apply", "-f", "-", stdin=ISVC) == f"{name} unchanged\n"
    changed = ISVC.replace("minReplicas: 1", "maxReplicas: 3")
    status, diff, _ = await kubectl.run("diff", "-f", "-", stdin=changed)
    assert status == 1
    assert "-    minReplicas: 1" in diff
    dry = await kubectl.ok("apply", "-f", "-", "--dry-run=server", stdin=changed)
    assert dry == f"{name} configured (server dry run)\n"
    assert await kubectl.ok("apply", "-f", "-", stdin=changed) == f"{name} configured\n"
    after = json.loads(await kubectl.ok("get", "isvc", "iris", "-o", "json"))
    assert after["spec"]["predictor"]["maxReplicas"] == 3
    assert "minReplicas" not in after["spec"]["predictor"]
    assert after["metadata"]["generation"] == 2
    assert "iris replaced" in await kubectl.ok("replace", "-f", "-", stdin=ISVC)
    assert "deleted" in await kubectl.ok("delete", "isvc", "iris")
    assert "NotFound" in await kubectl.fails("get", "isvc", "iris")


async def test_server_side_apply(kubectl: Kubectl) -> None:
    await kubectl.ok("apply", "--server-side", "-f", "-", stdin=ISVC)
    other = ISVC.replace("minReplicas: 1", "minReplicas: 2")
    args = ("apply", "--server-side", "--field-manager=other", "-f", "-")
    error = await kubectl.fails(*args, stdin=other)
    assert 'conflict with "kubectl": .spec.predictor.minReplicas' in error
    await kubectl.ok(*args, "--force-conflicts", stdin=other)
    shown = await kubectl.ok("get", "isvc", "iris", "-o", "jsonpath={.spec.predictor.minReplicas}")
    assert shown == "2"


async def test_refusals_read_as_on_a_cluster(kubectl: Kubectl) -> None:
    odd = ISVC.replace("minReplicas", "minreplicas")
    assert 'strict decoding error: unknown field "spec.predictor.minreplicas"' in (
        await kubectl.fails("apply", "-f", "-", stdin=odd)
    )
    status, _, warned = await kubectl.run("apply", "-f", "-", "--validate=warn", stdin=odd)
    assert (status, warned) == (0, 'Warning: unknown field "spec.predictor.minreplicas"\n')
    refused = await kubectl.fails("create", "-f", "-", stdin=ISVC)
    assert 'inferenceservices.serving.kserve.io "iris" already exists' in refused
    wrong = ISVC.replace("minReplicas: 1", "minReplicas: -1")
    assert (
        'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request'
        in await kubectl.fails("apply", "-f", "-", stdin=wrong)
    )
    patch = '{"metadata":{"labels":{"z":"2"}}}'
    assert "application/strategic-merge-patch+json is not supported" in (
        await kubectl.fails("patch", "isvc", "iris", "-p", patch)
    )
    assert "NotFound" in await kubectl.fails("scale", "isvc", "iris", "--replicas=2")
    assert "may not be deleted" in await kubectl.fails("delete", "namespace", "default")


async def test_looking_at_things(kubectl: Kubectl) -> None:
    await kubectl.ok("apply", "-f", "-", stdin=ISVC)
    store = kubectl.world.store
    isvc = store.get(Key(scheme.INFERENCE_SERVICE.id, "default", "iris"))
    ready = {"type": "Ready", "status": "True"}
    await store.update_status(
        {**isvc, "status": {"url": "http://iris.default.example.com", "conditions": [ready]}}
    )
    header, row = (await kubectl.ok("get", "isvc")).splitlines()
    assert header.split()[:3] == ["NAME", "URL", "READY"]
    assert row.split()[:3] == ["iris", "http://iris.default.example.com", "True"]
    everywhere = await kubectl.ok("get", "isvc", "-A", "-l", "team in (a,b)", "-o", "wide")
    assert everywhere.splitlines()[1].startswith("default")
    assert "inferenceservice.serving.kserve.io/iris" in await kubectl.ok("get", "all")
    assert "Storage Uri:  gs://bucket/model" in await kubectl.ok("describe", "isvc", "iris")
    assert "minReplicas\t<integer>" in await kubectl.ok("explain", "isvc.spec.predictor")
    assert "isvc" in await kubectl.ok("api-resources", "--api-group=serving.kserve.io")
    assert "Server Version: v1.33" in await kubectl.ok("version")
    runtimes = await kubectl.ok("get", "clusterservingruntimes")
    assert "kserve-sklearnserver" in runtimes
    assert await kubectl.ok("wait", "--for=condition=Ready", "isvc/iris", "--timeout=5s")
    assert await kubectl.ok("get", "--raw", "/readyz") == "ok"


async def test_changing_things(kubectl: Kubectl) -> None:
    await kubectl.ok("apply", "-f", "-", stdin=ISVC)
    await kubectl.ok("apply", "-f", "-", stdin=DEPLOYMENT)
    await kubectl.ok("label", "isvc", "iris", "k=v")
    await kubectl.ok("annotate", "isvc", "iris", "k=v")
    add = '[{"op":"add","path":"/metadata/labels/y","value":"2"}]'
    await kubectl.ok("patch", "isvc", "iris", "--type=json", "-p", add)
    status = '{"status":{"url":"http://x"}}'
    await kubectl.ok("patch", "isvc", "iris", "--subresource=status", "--type=merge", "-p", status)
    isvc = json.loads(await kubectl.ok("get", "isvc", "iris", "-o", "json"))
    assert isvc["metadata"]["labels"] == {"team": "a", "k": "v", "y": "2"}
    assert isvc["status"]["url"] == "http://x"
    await kubectl.ok("scale", "deploy/web", "--replicas=3")
    await kubectl.ok("set", "image", "deploy/web", "c=other")
    await kubectl.ok("rollout", "restart", "deploy/web")
    deployment = json.loads(await kubectl.ok("get", "deploy", "web", "-o", "json"))
    assert deployment["spec"]["replicas"] == 3
    template = deployment["spec"]["template"]
    assert template["spec"]["containers"][0]["image"] == "other"
    assert "kubectl.kubernetes.io/restartedAt" in template["metadata"]["annotations"]
    await kubectl.ok("delete", "deploy", "--all", "--cascade=foreground")
    assert await kubectl.ok("get", "deploy", "-o", "name") == ""


async def test_watching(kubectl: Kubectl) -> None:
    process = await kubectl.start("get", "isvc", "-w", "--no-headers", "-o", "name")
    assert process.stdout is not None
    await kubectl.ok("apply", "-f", "-", stdin=ISVC)
    assert await process.stdout.readline() == b"inferenceservice.serving.kserve.io/iris\n"
    await kubectl.ok("label", "isvc", "iris", "k=v")
    assert await process.stdout.readline() == b"inferenceservice.serving.kserve.io/iris\n"
    process.terminate()
    await process.communicate()
    waiting = await kubectl.start("wait", "--for=delete", "isvc/iris", "--timeout=20s")
    await kubectl.ok("delete", "isvc", "iris")
    assert await waiting.wait() == 0
    await waiting.communicate()


async def test_namespaces_and_logs(kubectl: Kubectl) -> None:
    manifest = "apiVersion: v1\nkind: Namespace\nmetadata: {name: team}\n"
    await kubectl.ok("create", "-f", "-", stdin=manifest)
    await kubectl.ok("run", "p", "--image=i", "-n", "team")
    log = kubectl.world.folder / "logs" / "p" / "p.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\ntwo\n")
    assert await kubectl.ok("logs", "p", "-n", "team", "--tail=1") == "two\n"
    assert "is waiting to start" not in await kubectl.ok("logs", "p", "-n", "team")
    await kubectl.ok("delete", "namespace", "team")
    assert "NotFound" in await kubectl.fails("get", "pod", "p", "-n", "team")


async def test_kubectl_create_writes_protobuf(kubectl: Kubectl) -> None:
    """From 1.32 on, without a JSON fallback."""
    await kubectl.ok("create", "namespace", "team")
    await kubectl.ok("create", "configmap", "c", "--from-literal=a=b", "-n", "team")
    await kubectl.ok("create", "secret", "generic", "s", "--from-literal=p=w", "-n", "team")
    await kubectl.ok("create", "serviceaccount", "robot", "-n", "team")
    create = ("create", "deployment", "web", "--image=nginx", "--replicas=0", "--port=80")
    await kubectl.ok(*create, "-n", "team")
    await kubectl.ok("create", "service", "clusterip", "web", "--tcp=80:8080", "-n", "team")
    shown = await kubectl.ok("get", "secret", "s", "-n", "team", "-o", "jsonpath={.data.p}")
    assert shown == "dw=="
    deployment = json.loads(await kubectl.ok("get", "deploy", "web", "-n", "team", "-o", "json"))
    assert deployment["spec"]["replicas"] == 0
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert (container["image"], container["ports"][0]["containerPort"]) == ("nginx", 80)
    service = json.loads(await kubectl.ok("get", "svc", "web", "-n", "team", "-o", "json"))
    assert service["spec"]["ports"][0]["targetPort"] == 8080


async def test_kubectl_names_what_is_invalid(kubectl: Kubectl) -> None:
    """kubectl makes its text of `details`, not of the message."""
    error = await kubectl.fails("create", "-f", "-", stdin=ISVC.replace("iris", "Bad_name"))
    assert 'The InferenceService "Bad_name" is invalid: metadata.name: Invalid value' in error
    wrong = DEPLOYMENT.replace("replicas: 1", "replicas: two")
    error = await kubectl.fails("create", "-f", "-", stdin=wrong)
    assert (
        'Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal '
        "string into Go struct field Deployment.spec.replicas of type int32"
    ) in error


async def test_a_pod_cannot_be_rewritten(kubectl: Kubectl) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "a:b", "args": ["1"]}]},
    }
    await kubectl.world.store.create(pod)
    change = {"spec": {"containers": [{"name": "c", "args": ["2"]}]}}
    error = await kubectl.fails("patch", "pod", "p", "-p", json.dumps(change))
    assert 'The Pod "p" is invalid: spec: Forbidden: pod updates may not change' in error
    await kubectl.ok("label", "pod", "p", "seen=yes")
    await kubectl.ok("set", "image", "pod/p", "c=a:c")
