"""Standard mode with real processes: components, time limits, replicas, canaries, commands."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from kserve_local.api import builtin
from tests.integration.component_world import hop, mirror, write
from tests.integration.project import SAMPLES, Project, project, wait_until

MODE = "serving.kserve.io/deploymentMode"
CLASS = "serving.kserve.io/autoscalerClass"
ROWS = {"instances": [[6.8, 2.8, 4.8, 1.4]]}


BUSY = """
import pathlib, threading, time

def work():
    while True:
        until = time.perf_counter() + 0.02
        while time.perf_counter() < until:
            pass
        time.sleep(0.08)

threading.Thread(target=work, daemon=True).start()
exec((pathlib.Path(__file__).parent / "mirror.py").read_text())
"""


def busy() -> dict[str, Any]:
    """A predictor that uses some processor time; a custom container asks for one core."""
    predictor = mirror("busy", maxReplicas=2, scaleTarget=2)
    predictor["containers"][0]["image"] = "example/busy:dev"
    return predictor


def host(name: str) -> str:
    return f"{name}-default.example.com"


def with_gateway_api() -> dict[str, Any]:
    """The ConfigMap as a user changes it on a cluster."""
    config = copy.deepcopy(builtin.config_map())
    ingress = json.loads(config["data"]["ingress"])
    config["data"]["ingress"] = json.dumps({**ingress, "enableGatewayApi": True})
    return config


def iris(**more: Any) -> dict[str, Any]:
    return {
        "predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "one"}},
        **more,
    }


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("standard") / "p"
    write(
        folder,
        duo={
            "predictor": mirror("predictor"),
            "transformer": hop(),
            "explainer": mirror("explainer"),
        },
        slow={"predictor": mirror("slow", "slow", timeout=1)},
        nobody={"predictor": mirror("nobody", minReplicas=0)},
        iris=iris(),
        busy={"predictor": busy()},
    )
    (folder / "busy.py").write_text(BUSY)
    settings = json.loads((folder / "kserve-local.yaml").read_text())
    settings["images"]["example/busy:dev"] = {"context": ".", "command": ["python", "busy.py"]}
    settings["autoscaling"] = {"speed": 15}
    (folder / "kserve-local.yaml").write_text(json.dumps(settings))
    for copied in ("one", "two"):
        shutil.copytree(SAMPLES / "sklearn-iris" / "model", folder / copied)
    manifest = json.loads((folder / "services.yaml").read_text())
    for item in manifest["items"]:
        item["metadata"]["annotations"] = {MODE: "Standard"}
        if item["metadata"]["name"] == "nobody":
            item["metadata"]["annotations"][CLASS] = "none"
    manifest["items"].insert(0, with_gateway_api())
    (folder / "services.yaml").write_text(json.dumps(manifest))
    with project(folder) as p:
        p.up()
        yield p


def test_a_request_passes_the_transformer_and_explain_the_explainer(standard: Project) -> None:
    status, answer = standard.call("/v1/models/duo:predict", ROWS, host=host("duo"))
    assert (status, answer["who"]) == (200, "predictor")
    status, answer = standard.call("/v1/models/duo:explain", ROWS, host=host("duo"))
    assert (status, answer["who"]) == (200, "explainer")
    assert answer["headers"]["kserve-isvc-name"] == "duo"
    status, answer = standard.call("/v1/models/duo:predict", ROWS, host=host("duo-predictor"))
    assert (status, answer["who"]) == (200, "predictor")
    assert standard.call("/v1/models/duo:predict", ROWS, host="duo.default.example.com")[0] == 404


def test_a_slow_answer_is_cut_off_in_envoys_words(standard: Project) -> None:
    answer = standard.call("/v1/models/slow:predict", ROWS, host=host("slow"))
    assert answer == (504, "upstream request timeout")


def test_without_a_replica_nothing_waits(standard: Project) -> None:
    answer = standard.call("/v1/models/nobody:predict", ROWS, host=host("nobody"))
    assert answer == (503, "no healthy upstream")
    assert standard.service("nobody")["state"] == "Zero"


def test_the_command_line_knows_it(standard: Project) -> None:
    answer = json.loads(standard.run("predict", "iris", json.dumps(ROWS)).stdout)
    assert answer == {"predictions": [1]}
    service = standard.service("iris")
    assert service["url"] == f"http://{host('iris')}"
    assert "Standard" not in " ".join(service["notes"])
    shown = standard.run("get", "hpa,httproute").stdout
    assert "Deployment/iris-predictor" in shown
    assert '["iris-default.example.com"]' in shown
    assert "predictor 100%" in standard.run("status").stdout


def test_a_busy_service_gets_a_second_replica(standard: Project) -> None:
    """By the processor time of its process; more than maxReplicas it never gets."""
    wait_until(
        lambda: sum(r["replicas"] for r in standard.service("busy")["revisions"]) == 2,
        why="the HPA scales up",
    )
    done = standard.run("get", "hpa", "busy-predictor", "-o", "json")
    hpa = json.loads(done.stdout)
    assert (hpa["spec"]["maxReplicas"], hpa["status"]["desiredReplicas"]) == (2, 2)
    shown = standard.run("get", "hpa", "busy-predictor").stdout
    assert "%/2%" in shown
    assert "SuccessfulRescale" in standard.run("get", "events").stdout


def test_scale_goes_past_the_hpa(standard: Project) -> None:
    def count() -> int:
        return sum(r["replicas"] for r in standard.service("iris")["revisions"])

    wait_until(lambda: count() == 1)
    assert "iris-predictor: 2 replicas (was 1)" in standard.run("scale", "iris", "2").stdout
    wait_until(lambda: count() == 2, why="maxReplicas is 1, and does not count")
    assert "has 2 replicas by hand" in standard.run("status", "iris").stdout
    done = standard.run("scale", "iris", "zero")
    assert "requests get 503 meanwhile" in done.stderr
    wait_until(lambda: standard.service("iris")["state"] == "Zero")
    answer = standard.call("/v1/models/iris:predict", ROWS, host=host("iris"))
    assert answer == (503, "no healthy upstream")
    standard.run("scale", "iris", "auto")
    wait_until(lambda: count() == 1)
    refused = standard.run("scale", "nobody", "1", check=None)
    assert "nobody-predictor has no autoscaler" in refused.stderr


def apply(p: Project, name: str, spec: dict[str, Any]) -> None:
    manifest = json.loads((p.folder / "services.yaml").read_text())
    for item in manifest["items"]:
        if item["metadata"]["name"] == name:
            item["spec"] = spec
    (p.folder / "services.yaml").write_text(json.dumps(manifest))
    p.run("apply", "-f", "services.yaml")


def shares(p: Project, name: str) -> dict[str, tuple[int, list[int]]]:
    """Return percent and pids of each Deployment that has a replica."""
    return {
        r["name"]: (r["percent"], r["pids"]) for r in p.service(name)["revisions"] if r["replicas"]
    }


def test_a_canary_is_promoted_without_a_restart(standard: Project) -> None:
    # The CRD wants a name and a format here, though the stable predictor's hold.
    model = {"name": "kserve-container", "modelFormat": {"name": "sklearn"}, "storageUri": "two"}
    canary = {"predictor": {"name": "v2", "model": model}, "trafficPercent": 50}
    apply(standard, "iris", iris(canary=[canary]))
    split = wait_until(
        lambda: len(found := shares(standard, "iris")) == 2 and found, why="the canary is ready"
    )
    assert {name: percent for name, (percent, _) in split.items()} == {
        "iris-predictor": 50,
        "iris-v2-predictor": 50,
    }
    pids = split["iris-v2-predictor"][1]
    for _ in range(10):
        assert standard.call("/v1/models/iris:predict", ROWS, host=host("iris"))[0] == 200
    alone = standard.run("predict", "iris", "--revision", "v2", json.dumps(ROWS))
    assert json.loads(alone.stdout) == {"predictions": [1]}
    refused = standard.run("predict", "iris", "--revision", "v9", json.dumps(ROWS), check=None)
    assert "iris-predictor, iris-v2-predictor" in refused.stderr
    promoted = iris()
    promoted["predictor"]["name"] = "v2"
    promoted["predictor"]["model"]["storageUri"] = "two"
    apply(standard, "iris", promoted)
    wait_until(
        lambda: shares(standard, "iris") == {"iris-v2-predictor": (100, pids)},
        why="the canary's processes serve alone",
    )
    assert standard.call("/v1/models/iris:predict", ROWS, host=host("iris"))[0] == 200
    assert standard.isvc("iris")["status"]["url"] == f"http://{host('iris')}"
