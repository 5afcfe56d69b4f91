"""One real project seen through its API and called through its gateway, against KServe's own words.

Expected values are the worked examples and tables of KServe v0.20's behaviour: fresh and ready
(status, table row), canary, promotion, rollback, tags, stop and resume, refusals.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from kserve_local.api import scheme
from kserve_local.api.scheme import ResourceType
from kserve_local.client.client import Client
from kserve_local.errors import KServeLocalError
from tests.integration.project import Project, project, wait_until

WHO = """
import http.server, json, signal, sys

# As the first process of a container it would ignore the signal.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = json.dumps({"predictions": [sys.argv[1], self.headers["host"]]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""
SPEC: dict[str, Any] = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {"name": "who"},
    "spec": {
        "predictor": {
            "containers": [{"name": "kserve-container", "image": "who:dev", "args": ["one"]}]
        }
    },
}
TABLE = ["NAME", "URL", "READY", "PREV", "LATEST", "PREVROLLEDOUTREVISION", "LATESTREADYREVISION"]


class Cluster:
    """The project's Kubernetes API, and its gateway."""

    def __init__(self, place: Project) -> None:
        self.project = place

    def do(self, what: Callable[[Client], Awaitable[Any]]) -> Any:
        """Return what the API answers; every call is a client of its own."""

        async def call() -> Any:
            async with Client.from_kubeconfig(self.project.state / "kubeconfig") as client:
                return await what(client)

        return asyncio.run(call())

    def apply(self, obj: dict[str, Any]) -> None:
        obj = {**obj, "metadata": {"namespace": "default", **obj["metadata"]}}
        self.do(lambda c: c.apply(obj, field_validation="Strict"))

    def delete(self, name: str) -> None:
        """Delete an InferenceService if there is one, and wait until it is gone."""

        async def gone(client: Client) -> None:
            if await client.find(scheme.INFERENCE_SERVICE, name, "default") is not None:
                await client.delete(scheme.INFERENCE_SERVICE, name, "default")

        self.do(gone)
        wait_until(lambda: f"InferenceService/{name}" not in self.names(scheme.INFERENCE_SERVICE))

    def change(self, patch: dict[str, Any], name: str = "who") -> None:
        self.do(lambda c: c.patch(scheme.INFERENCE_SERVICE, name, patch, "default"))

    def patch(self, predictor: dict[str, Any], name: str = "who") -> None:
        self.change({"spec": {"predictor": predictor}}, name)

    def annotate(self, key: str, value: str | None) -> None:
        self.change({"metadata": {"annotations": {f"serving.kserve.io/{key}": value}}})

    def get(self, kind: ResourceType, name: str) -> dict[str, Any]:
        return dict(self.do(lambda c: c.get(kind, name, "default")))

    def names(self, *kinds: ResourceType) -> set[str]:
        """Return `Kind/name` of what there is."""
        found = set()
        for kind in kinds:
            listing = functools.partial(Client.list, kind=kind, namespace="default")
            for obj in self.do(listing):
                found.add(f"{kind.kind}/{obj['metadata']['name']}")
        return found

    def events(self, name: str) -> str:
        """Return reasons and messages of the service's Events."""
        listed = self.do(lambda c: c.list(scheme.EVENT, fields=f"involvedObject.name={name}"))
        return "\n".join(f"{e['reason']}: {e['message']}" for e in listed)

    def until(
        self,
        holds: Callable[[dict[str, Any]], Any],
        name: str = "who",
        kind: ResourceType = scheme.INFERENCE_SERVICE,
    ) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            obj = self.get(kind, name)
            return obj if holds(obj) else None

        return dict(wait_until(look, why=f"{kind.kind} {name}", step=0.1))

    def traffic(self, name: str = "who") -> dict[str, tuple[int, str]]:
        """Return tag (or `latest revision`) -> percent and revision of the status."""
        entries = self.get(scheme.INFERENCE_SERVICE, name)["status"]["components"]["predictor"][
            "traffic"
        ]
        return {
            "latest revision" if t["latestRevision"] else t["tag"]: (
                t["percent"],
                t["revisionName"].rpartition("-")[2],
            )
            for t in entries
        }

    def row(self, name: str = "who") -> dict[str, Any]:
        """Return the cells that `kubectl get isvc` shows, by column."""
        accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
        path = f"/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices/{name}"
        table = self.do(lambda c: c.call("GET", path, accept=accept))
        columns = [column["name"].upper() for column in table["columnDefinitions"]]
        assert columns == [*TABLE, "AGE"]
        return dict(zip(TABLE, table["rows"][0]["cells"], strict=False))

    def ask(self, host: str) -> str:
        """Return which revision's code answered."""
        status, body = self.project.call("/v1/models/who:predict", {"instances": [1]}, host=host)
        assert status == 200, body
        return str(body["predictions"][0])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("fidelity") / "project"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "who.py").write_text(WHO)
    config = {
        "resources": ["who.json"],
        "images": {"who:dev": {"context": "./code", "command": ["python", "who.py"]}},
    }
    (folder / "kserve-local.yaml").write_text(json.dumps(config))
    (folder / "who.json").write_text(json.dumps(SPEC))
    with project(folder) as p:
        p.up()
        yield Cluster(p)


def is_ready(isvc: dict[str, Any]) -> bool:
    return conditions(isvc).get("Ready") == ("True", "")


def is_loaded(isvc: dict[str, Any]) -> bool:
    model = isvc.get("status", {}).get("modelStatus", {})
    return is_ready(isvc) and bool(model.get("transitionStatus") == "UpToDate")


def conditions(isvc: dict[str, Any]) -> dict[str, tuple[str, str]]:
    found = isvc.get("status", {}).get("conditions", [])
    return {c["type"]: (c["status"], c.get("reason", "")) for c in found}


def fresh(cluster: Cluster) -> dict[str, Any]:
    """Return the service `who`, made anew with one revision that is rolled out."""
    cluster.delete("who")
    cluster.apply(SPEC)
    return cluster.until(is_loaded)


def test_a_fresh_service_reads_as_on_a_cluster(cluster: Cluster) -> None:
    """Worked example A of KServe's status, to the field; only times are left out."""
    status = fresh(cluster)["status"]
    times = [c.pop("lastTransitionTime") for c in status["conditions"]]
    assert all(times)
    assert status == {
        "address": {"url": "http://who.default.svc.cluster.local"},
        "components": {
            "predictor": {
                "address": {"url": "http://who-predictor.default.svc.cluster.local"},
                "latestCreatedRevision": "who-predictor-00001",
                "latestReadyRevision": "who-predictor-00001",
                "latestRolledoutRevision": "who-predictor-00001",
                "traffic": [
                    {
                        "latestRevision": True,
                        "percent": 100,
                        "revisionName": "who-predictor-00001",
                    }
                ],
                "url": "http://who-predictor.default.example.com",
            }
        },
        "conditions": [
            {"type": "IngressReady", "status": "True"},
            {"type": "LatestDeploymentReady", "status": "True", "severity": "Info"},
            {"type": "PredictorConfigurationReady", "status": "True", "severity": "Info"},
            {"type": "PredictorReady", "status": "True"},
            {"type": "PredictorRouteReady", "status": "True", "severity": "Info"},
            {"type": "Ready", "status": "True"},
            {"type": "RoutesReady", "status": "True", "severity": "Info"},
            {"type": "Stopped", "status": "False", "severity": "Info"},
        ],
        "deploymentMode": "Knative",
        "modelStatus": {
            "copies": {"failedCopies": 0, "totalCopies": 1},
            "states": {"activeModelState": "Loaded", "targetModelState": "Loaded"},
            "transitionStatus": "UpToDate",
        },
        "observedGeneration": 1,
        "url": "http://who.default.example.com",
    }
    assert cluster.row() == {
        "NAME": "who",
        "URL": "http://who.default.example.com",
        "READY": "True",
        "PREV": None,
        "LATEST": 100,
        "PREVROLLEDOUTREVISION": "",
        "LATESTREADYREVISION": "who-predictor-00001",
    }
    said = cluster.events("who")
    assert "InferenceService [who] is Ready" in said


@pytest.mark.parametrize(
    "host",
    [
        "who.default.example.com",
        "who.default.example.com:8080",
        "WHO.Default.Example.Com",
        "who.default.localhost",
        "who.default",
        "who.default.svc",
        "who.default.svc.cluster.local",
        "who-predictor.default.example.com",
        "who-predictor.default.svc.cluster.local",
    ],
)
def test_every_name_of_a_service_reaches_it(cluster: Cluster, host: str) -> None:
    assert cluster.ask(host) == "one"


def test_unknown_hosts_find_nothing(cluster: Cluster) -> None:
    for host in ("other.default.example.com", "who.other.example.com", "prev-who.default"):
        status, body = cluster.project.call("/v1/models/who:predict", {}, host=host)
        assert (status, body) == (404, "")


def test_canary_promotion_and_rollback(cluster: Cluster) -> None:
    """Traffic block, status, table and what the gateway does agree at every step."""
    fresh(cluster)
    two = [{"name": "kserve-container", "image": "who:dev", "args": ["two"]}]
    cluster.patch({"canaryTrafficPercent": 30, "containers": two})
    isvc = cluster.until(
        lambda o: (
            is_loaded(o)
            and o["status"]["components"]["predictor"]["latestReadyRevision"].endswith("2")
        )
    )
    predictor = isvc["status"]["components"]["predictor"]
    assert predictor["latestRolledoutRevision"] == "who-predictor-00001"
    assert "previousRolledoutRevision" not in predictor
    assert isvc["status"]["observedGeneration"] == 2
    assert {t["tag"]: t for t in predictor["traffic"] if "tag" in t} == {
        "prev": {
            "latestRevision": False,
            "percent": 70,
            "revisionName": "who-predictor-00001",
            "tag": "prev",
            "url": "http://prev-who-predictor.default.example.com",
        }
    }
    row = cluster.row()
    assert (row["PREV"], row["LATEST"]) == (70, 30)
    assert row["PREVROLLEDOUTREVISION"] == "who-predictor-00001"
    assert row["LATESTREADYREVISION"] == "who-predictor-00002"

    # Binomial(300, .3): 50 to 130 is five standard deviations to each side.
    drawn = Counter(cluster.ask("who.default.example.com") for _ in range(300))
    assert 50 <= drawn["two"] <= 130
    assert drawn["one"] + drawn["two"] == 300
    assert {cluster.ask("prev-who-predictor.default.example.com") for _ in range(20)} == {"one"}

    cluster.patch({"canaryTrafficPercent": 0})
    cluster.until(lambda o: cluster.traffic()["latest revision"][0] == 0)
    assert cluster.traffic() == {"latest revision": (0, "00002"), "prev": (100, "00001")}
    wait_until(lambda: Counter(cluster.ask("who.default") for _ in range(20)) == {"one": 20})
    # 0 % is still referenced: its Pods stay (traffic.md 4.2).
    assert cluster.get(scheme.REVISION, "who-predictor-00002")["status"]["actualReplicas"] == 1

    cluster.patch({"canaryTrafficPercent": None})
    isvc = cluster.until(lambda o: "previousRolledoutRevision" in str(o["status"]))
    predictor = isvc["status"]["components"]["predictor"]
    assert predictor["previousRolledoutRevision"] == "who-predictor-00001"
    assert predictor["latestRolledoutRevision"] == "who-predictor-00002"
    assert cluster.traffic() == {"latest revision": (100, "00002")}
    wait_until(lambda: Counter(cluster.ask("who.default") for _ in range(20)) == {"two": 20})
    cluster.until(
        lambda o: o["status"]["actualReplicas"] == 0, "who-predictor-00001", scheme.REVISION
    )

    cluster.patch({"canaryTrafficPercent": 0})
    cluster.until(lambda o: cluster.traffic().get("prev") == (100, "00001"))
    wait_until(lambda: Counter(cluster.ask("who.default") for _ in range(20)) == {"one": 20})
    assert (
        cluster.get(scheme.INFERENCE_SERVICE, "who")["status"]["components"]["predictor"][
            "latestRolledoutRevision"
        ]
        == "who-predictor-00001"
    )
    assert "Revision/who-predictor-00003" not in cluster.names(scheme.REVISION)


def test_tags_have_hosts(cluster: Cluster) -> None:
    fresh(cluster)
    cluster.annotate("enable-tag-routing", "true")
    isvc = cluster.until(lambda o: is_loaded(o) and "latest-who" in str(o["status"]["components"]))
    (entry,) = isvc["status"]["components"]["predictor"]["traffic"]
    assert entry["tag"] == "latest"
    assert entry["url"] == "http://latest-who-predictor.default.example.com"
    # The annotation is part of the template: it makes a revision of its own.
    cluster.until(lambda o: cluster.traffic() == {"latest revision": (100, "00002")})
    assert cluster.ask("latest-who-predictor.default.example.com") == "one"


def test_stop_and_resume(cluster: Cluster) -> None:
    """Worked example G; resuming numbers revisions from 1 again."""
    fresh(cluster)
    cluster.annotate("stop", "True")
    isvc = cluster.until(lambda o: conditions(o).get("Stopped") == ("True", ""))
    assert conditions(isvc) == {
        "IngressReady": ("False", "Stopped"),
        "PredictorReady": ("False", "Stopped"),
        "Ready": ("False", "Stopped"),
        "Stopped": ("True", ""),
    }
    status = isvc["status"]
    assert status["modelStatus"] == {"transitionStatus": ""}
    assert status["deploymentMode"] == "Knative"
    assert not {"url", "address", "components"} & set(status)
    wait_until(
        lambda: (
            not cluster.names(
                scheme.KNATIVE_SERVICE, scheme.REVISION, scheme.DEPLOYMENT, scheme.POD
            )
        )
    )
    status_code, _ = cluster.project.call("/v1/models/who", host="who.default.example.com")
    assert status_code == 404
    assert cluster.project.service("who")["state"] == "Stopped"

    cluster.annotate("stop", None)
    isvc = cluster.until(is_loaded)
    assert conditions(isvc)["Stopped"] == ("False", "")
    assert isvc["status"]["components"]["predictor"]["latestReadyRevision"].endswith("-00001")
    assert cluster.ask("who.default.example.com") == "one"


def test_disable_auto_update_holds_everything_back(cluster: Cluster) -> None:
    fresh(cluster)
    cluster.annotate("disable-auto-update", "true")
    before = cluster.get(scheme.INFERENCE_SERVICE, "who")
    cluster.patch({"minReplicas": 2})
    # Something else is carried out meanwhile: the controllers have been by.
    cluster.apply({**SPEC, "metadata": {"name": "other"}})
    cluster.until(is_loaded, "other")
    after = cluster.get(scheme.INFERENCE_SERVICE, "who")
    assert after["metadata"]["generation"] == before["metadata"]["generation"] + 1
    assert after["status"] == before["status"]
    assert "Revision/who-predictor-00002" not in cluster.names(scheme.REVISION)
    cluster.annotate("disable-auto-update", None)
    cluster.until(lambda o: cluster.traffic() == {"latest revision": (100, "00002")})
    cluster.delete("other")


def test_only_changes_change_the_version(cluster: Cluster) -> None:
    """generation counts wishes, resourceVersion changes; both stay when nothing does."""

    def numbers() -> tuple[int, str]:
        metadata = cluster.get(scheme.INFERENCE_SERVICE, "who")["metadata"]
        return metadata["generation"], metadata["resourceVersion"]

    fresh(cluster)
    generation, version = numbers()
    cluster.apply(SPEC)  # sends the containers again: the webhook had filled in resources
    assert numbers() == (generation, version)
    cluster.change({"metadata": {"labels": {"team": "a"}}})
    # Labels are part of the template: a revision follows, and its status.
    cluster.until(lambda o: is_loaded(o) and cluster.traffic()["latest revision"][1] == "00002")
    cluster.until(
        lambda o: o["status"]["actualReplicas"] == 0, "who-predictor-00001", scheme.REVISION
    )
    labelled = numbers()
    assert (labelled[0], labelled[1] != version) == (generation, True)
    cluster.change({"metadata": {"labels": {"team": "a"}}})
    assert numbers() == labelled
    cluster.change({"status": {"url": "http://x"}})
    assert numbers() == labelled
    cluster.patch({"timeout": 30})
    assert numbers()[0] == generation + 1


def test_knative_refuses_what_its_webhook_refuses(cluster: Cluster) -> None:
    """KServe accepts the timeout, Knative does not: PredictorReady and an Event say so."""
    fresh(cluster)
    cluster.patch({"timeout": 700})
    isvc = cluster.until(lambda o: conditions(o)["Ready"][0] == "False")
    message = (
        "fails to reconcile predictor: fails to reconcile knative service: admission webhook "
        '"validation.webhook.serving.knative.dev" denied the request: validation failed: '
        "expected 0 <= 700 <= 600: spec.template.spec.responseStartTimeoutSeconds, "
        "spec.template.spec.timeoutSeconds"
    )
    ready = next(c for c in isvc["status"]["conditions"] if c["type"] == "PredictorReady")
    assert (ready["reason"], ready["message"].splitlines()[0]) == ("ReconcileFailed", message)
    assert "denied the request" in cluster.events("who")
    assert "700 <= 600" in cluster.project.service("who")["message"]
    assert cluster.ask("who.default.example.com") == "one"  # what ran goes on
    cluster.patch({"timeout": 60})
    cluster.until(is_loaded)


def test_a_name_that_is_too_long_for_knative_is_told(cluster: Cluster) -> None:
    """KServe has no rule of its own for it; the Knative Service cannot be made."""
    name = "long-" * 10 + "name"
    cluster.apply({**SPEC, "metadata": {"name": name}})
    isvc = cluster.until(lambda o: conditions(o).get("Ready", ("",))[0] == "False", name)
    assert conditions(isvc)["PredictorReady"] == ("False", "ReconcileFailed")
    message = cluster.project.service(name)["message"]
    assert message.startswith("fails to reconcile predictor: fails to reconcile knative service: ")
    assert "no more than 63" in message
    cluster.delete(name)


def test_a_named_predictor_answers_at_the_url_of_its_status(cluster: Cluster) -> None:
    predictor = {**SPEC["spec"]["predictor"], "name": "v2"}
    cluster.apply({**SPEC, "metadata": {"name": "named"}, "spec": {"predictor": predictor}})
    status = cluster.until(is_loaded, "named")["status"]
    assert status["url"] == "http://named-v2.default.example.com"
    assert status["address"]["url"] == "http://named.default.svc.cluster.local"
    for host in ("named-v2.default.example.com", "named.default.svc.cluster.local"):
        assert cluster.ask(host) == "one"
    cluster.delete("named")


def refused(cluster: Cluster, name: str = "refused", **changes: Any) -> str:
    """Return why a service like `SPEC` with these changes cannot be created."""
    obj = json.loads(json.dumps(SPEC))
    obj["metadata"] = {"name": name, "namespace": "default"}
    obj["spec"]["predictor"] |= changes
    with pytest.raises(KServeLocalError) as caught:
        cluster.do(lambda c: c.create(obj, field_validation="Strict"))
    return caught.value.message


def test_refusals_name_what_they_refuse(cluster: Cluster) -> None:
    webhook = 'admission webhook "inferenceservice.kserve-webhook-server.validator" denied'
    assert refused(cluster, name="1st").startswith(f'{webhook} the request: the InferenceService "')
    assert "'MinReplicas' cannot be greater than MaxReplicas" in refused(
        cluster, minReplicas=3, maxReplicas=2
    )
    assert (
        refused(cluster, minReplica=1)
        == 'strict decoding error: unknown field "spec.predictor.minReplica"'
    )
    assert refused(cluster, name="Bad_name").startswith(
        'InferenceService.serving.kserve.io "Bad_name" is invalid: metadata.name: Invalid value: '
    )


def test_fields_without_effect_are_said(cluster: Cluster) -> None:
    obj = json.loads(json.dumps(SPEC))
    obj["metadata"]["name"] = "idle"
    obj["spec"]["predictor"]["hostPID"] = True
    cluster.apply(obj)
    cluster.until(is_loaded, "idle")
    said = cluster.events("idle")
    assert "NotImplemented" in said
    assert "the Pod does not see the machine's processes" in said
    assert "no effect here: hostPID" in cluster.project.run("status").stdout
    cluster.delete("idle")
