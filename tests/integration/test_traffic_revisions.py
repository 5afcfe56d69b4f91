"""Behaviours 17 to 20 of the traffic sheet, section 8, against a running project."""

from __future__ import annotations

import http.client
import json
import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest

from kserve_local.api import scheme
from tests.integration.project import project, wait_until
from tests.integration.test_fidelity import WHO, Cluster, conditions, is_loaded

SEED = 7
CRASH = 'if sys.argv[1] == "crash":\n    sys.exit(3)\n\nclass Handler'
# Head and body in one packet: a thousand answers do not wait for a thousand acknowledgements.
CODE = WHO.replace("class Handler", CRASH).replace(
    "    def do_GET", "    wbufsize = 65536\n    def do_GET"
)
PREDICT = "/v1/models/who:predict"


def containers(word: str) -> list[dict[str, Any]]:
    return [{"name": "kserve-container", "image": "who:dev", "args": [word]}]


ISVC: dict[str, Any] = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    # The shortest window that Knative takes: what an old revision waits for before it goes.
    "metadata": {"name": "who", "annotations": {"autoscaling.knative.dev/window": "6s"}},
    "spec": {"predictor": {"minReplicas": 1, "containers": containers("one")}},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("revisions") / "project"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "who.py").write_text(CODE)
    config = {
        "resources": ["who.json"],
        "images": {"who:dev": {"context": "./code", "command": ["python", "who.py"]}},
    }
    (folder / "kserve-local.yaml").write_text(json.dumps(config))
    (folder / "who.json").write_text(json.dumps(ISVC))
    with project(folder) as p:
        p.up("--seed", str(SEED))
        yield Cluster(p)


def fresh(cluster: Cluster) -> None:
    """Make the service anew, with one revision that is rolled out."""
    cluster.delete("who")
    cluster.apply(ISVC)
    cluster.until(is_loaded)


def draw(cluster: Cluster, host: str, count: int) -> Counter[str]:
    """Return who answered so many requests, one after the other on one connection."""
    at = urlsplit(cluster.project.gateway)
    connection = http.client.HTTPConnection(str(at.hostname), at.port, timeout=60)
    seen: Counter[str] = Counter()
    try:
        for _ in range(count):
            connection.request("POST", PREDICT, b"{}", {"Host": host})
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body
            seen[json.loads(body)["predictions"][0]] += 1
    finally:
        connection.close()
    return seen


def replicas(cluster: Cluster, revision: str) -> int:
    return int(cluster.get(scheme.REVISION, revision)["status"]["actualReplicas"])


def canary(cluster: Cluster, percent: int) -> None:
    """Add code `two` with a share of the traffic and wait for it."""
    cluster.patch({"canaryTrafficPercent": percent, "containers": containers("two")})
    split = {"latest revision": (percent, "00002"), "prev": (100 - percent, "00001")}
    cluster.until(lambda o: is_loaded(o) and cluster.traffic() == split)


def test_behaviour_17_scaling_edits_make_a_revision_and_a_canary_percent_does_not(
    cluster: Cluster,
) -> None:
    fresh(cluster)
    cluster.patch({"minReplicas": 2})
    cluster.until(
        lambda o: is_loaded(o) and cluster.traffic() == {"latest revision": (100, "00002")}
    )
    for percent in (10, 50, 0, None):
        cluster.patch({"canaryTrafficPercent": percent})
        want = 100 if percent is None else percent
        wait_until(partial(_has_share, cluster, want))
    assert cluster.names(scheme.REVISION) == {
        "Revision/who-predictor-00001",
        "Revision/who-predictor-00002",
    }


def _has_share(cluster: Cluster, percent: int) -> bool:
    return cluster.traffic()["latest revision"][0] == percent


def test_behaviour_18_a_canary_is_drawn_for_each_request(cluster: Cluster) -> None:
    fresh(cluster)
    canary(cluster, 10)
    host = "who.default.example.com"
    wait_until(lambda: _is_split(cluster))
    drawn = draw(cluster, host, 1000)
    assert 71 <= drawn["two"] <= 129
    assert drawn["one"] + drawn["two"] == 1000
    assert draw(cluster, "prev-who-predictor.default.example.com", 100) == {"one": 100}
    cluster.patch({"canaryTrafficPercent": 0})
    cluster.until(
        lambda o: cluster.traffic() == {"latest revision": (0, "00002"), "prev": (100, "00001")}
    )
    wait_until(lambda: draw(cluster, host, 20) == {"one": 20})
    assert draw(cluster, host, 200) == {"one": 200}
    assert replicas(cluster, "who-predictor-00002") == 1


def _is_split(cluster: Cluster) -> bool:
    """Whether the gateway has the table of the canary: the tag's host is in no other."""
    status, _ = cluster.project.call(PREDICT, {}, host="prev-who-predictor.default.example.com")
    return status == 200


def test_the_seed_repeats_the_draws(cluster: Cluster) -> None:
    """Another gateway with the same seed begins with the same draws."""
    fresh(cluster)
    canary(cluster, 10)
    predictor = {**ISVC["spec"]["predictor"], "containers": containers("two")}
    same = {**ISVC, "spec": {"predictor": {**predictor, "canaryTrafficPercent": 10}}}
    (cluster.project.folder / "who.json").write_text(json.dumps(same))
    cluster.project.run("down")
    cluster.project.up("--seed", str(SEED))
    wait_until(lambda: _is_split(cluster))
    assert cluster.traffic() == {"latest revision": (10, "00002"), "prev": (90, "00001")}
    generator = random.Random(SEED)
    expected = Counter("two" if generator.random() < 0.1 else "one" for _ in range(300))
    assert draw(cluster, "who.default.example.com", 300) == expected
    refused = cluster.project.run("up", "-d", "--seed", "8", check=6)
    assert "already runs with --seed 7, not with --seed 8" in refused.stderr


def test_behaviour_19_a_broken_canary_gets_nothing(cluster: Cluster) -> None:
    fresh(cluster)
    host = "who.default.example.com"
    cluster.patch({"containers": containers("crash")})
    isvc = cluster.until(lambda o: conditions(o).get("Ready", ("",))[0] == "False")
    predictor = isvc["status"]["components"]["predictor"]
    assert predictor["latestCreatedRevision"] == "who-predictor-00002"
    assert predictor["latestReadyRevision"] == "who-predictor-00001"
    assert cluster.traffic() == {"latest revision": (100, "00001")}
    assert conditions(isvc)["IngressReady"] == ("True", "")
    assert isvc["status"]["url"] == "http://who.default.example.com"
    assert draw(cluster, host, 100) == {"one": 100}
    # Its share of a canary goes to the last ready one, too.
    cluster.patch({"canaryTrafficPercent": 50})
    cluster.until(lambda o: len(cluster.traffic()) == 2)
    assert cluster.traffic() == {"latest revision": (50, "00001"), "prev": (50, "00001")}
    assert draw(cluster, host, 100) == {"one": 100}
    cluster.patch({"containers": containers("two"), "canaryTrafficPercent": None})
    cluster.until(
        lambda o: is_loaded(o) and cluster.traffic() == {"latest revision": (100, "00003")}
    )
    wait_until(lambda: draw(cluster, host, 20) == {"two": 20})


def test_behaviour_20_rollback_and_an_old_revision_at_zero(cluster: Cluster) -> None:
    fresh(cluster)
    host = "who.default.example.com"
    cluster.patch({"containers": containers("two")})
    cluster.until(
        lambda o: is_loaded(o) and cluster.traffic() == {"latest revision": (100, "00002")}
    )
    wait_until(lambda: replicas(cluster, "who-predictor-00001") == 0)
    old = cluster.get(scheme.REVISION, "who-predictor-00001")
    assert old["metadata"]["annotations"]["autoscaling.knative.dev/min-scale"] == "1"
    assert old["metadata"]["labels"]["serving.knative.dev/routingState"] == "reserve"
    cluster.patch({"canaryTrafficPercent": 0})
    cluster.until(
        lambda o: cluster.traffic() == {"latest revision": (0, "00002"), "prev": (100, "00001")}
    )
    # No request fails while the old one comes back.
    wait_until(lambda: draw(cluster, host, 20) == {"one": 20})
    assert replicas(cluster, "who-predictor-00001") == 1
    assert "Revision/who-predictor-00003" not in cluster.names(scheme.REVISION)
