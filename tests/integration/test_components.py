"""Services of several components, run for real: who is asked, and what a broken hop looks like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.integration.component_world import hop, mirror, write
from tests.integration.project import Project, of_processes, project, sample, wait_until

PREDICT, EXPLAIN = "/v1/models/all:predict", "/v1/models/all:explain"
DOTTED = "/v1/models/a.b:explain"
FLAT = [6.8, 2.8, 4.8, 1.4, 6.0, 3.4, 4.5, 1.6]
ROWS = {"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = write(
        tmp_path_factory.mktemp("components") / "project",
        all={
            "predictor": mirror("predictor"),
            "transformer": mirror("transformer"),
            "explainer": mirror("explainer"),
        },
        two={"predictor": mirror("predictor"), "explainer": mirror("explainer")},
        hop={"predictor": mirror("predictor"), "transformer": hop()},
        garbage={"predictor": mirror("predictor", "garbage"), "transformer": hop()},
        foreign={"predictor": mirror("predictor", "missing"), "transformer": hop()},
        slow={"predictor": mirror("predictor", "slow", timeout=1), "transformer": hop()},
    )
    with project(folder) as place:
        place.up()
        yield place


@pytest.mark.parametrize(
    ("host", "path", "who", "seen"),
    [
        ("all.default.example.com", PREDICT, "transformer", PREDICT),
        ("all.default.example.com", EXPLAIN, "explainer", EXPLAIN),
        ("all.default.svc.cluster.local", EXPLAIN, "explainer", EXPLAIN),
        ("all.default.example.com", "/v2/models/all/infer", "transformer", "/v2/models/all/infer"),
        # The rule is a regular expression without dots, of the first protocol only.
        ("all.default.example.com", DOTTED, "transformer", DOTTED),
        ("", f"/serving/default/all{PREDICT}", "transformer", PREDICT),
        ("", f"/serving/default/all{EXPLAIN}", "explainer", EXPLAIN),
        ("", EXPLAIN, "explainer", EXPLAIN),
        ("two.default.example.com", PREDICT, "predictor", PREDICT),
        ("two.default.example.com", EXPLAIN, "explainer", EXPLAIN),
        ("all-predictor.default.example.com", EXPLAIN, "predictor", EXPLAIN),
        ("all-transformer.default.example.com", EXPLAIN, "transformer", EXPLAIN),
        ("all-explainer.default.example.com", PREDICT, "explainer", PREDICT),
    ],
)  # fmt: skip
def test_who_is_asked(world: Project, host: str, path: str, who: str, seen: str) -> None:
    status, answer = world.call(path, ROWS, host=host)
    assert (status, answer["who"], answer["path"]) == (200, who, seen)
    # The cluster's rule for the service as a whole names it; a component's own name tells nothing.
    told = {k: v for k, v in answer["headers"].items() if k.startswith("kserve-isvc")}
    service = (host or "all").partition(".")[0]
    expected = {"kserve-isvc-name": service, "kserve-isvc-namespace": "default"}
    assert told == (expected if service in ("all", "two") else {})


def test_a_transformer_asks_its_predictor_by_the_name_it_was_given(world: Project) -> None:
    status, answer = world.call("/v1/models/hop:predict", ROWS, host="hop.default.example.com")
    assert (status, answer["who"]) == (200, "predictor")
    assert answer["headers"]["host"] == "hop-predictor.default"
    assert json.loads(answer["body"]) == ROWS
    assert "kserve-isvc-name" not in answer["headers"]


def test_the_status_of_a_service_of_three_components(world: Project) -> None:
    seen = world.service("all")
    assert (seen["state"], seen["ready"]) == ("Ready", True)
    components = [c["component"] for c in seen["components"]]
    assert components == ["predictor", "transformer", "explainer"]
    assert [len(c["revisions"]) for c in seen["components"]] == [1, 1, 1]
    status = world.isvc("all")["status"]
    assert status["url"] == "http://all.default.example.com"
    assert set(status["components"]) == set(components)
    table = world.run("status", "all", "-o", "wide").stdout.splitlines()
    assert [line.split()[0] for line in table[1:5]] == ["all", *components]
    logged = world.run("logs", "all", "--component", "explainer").stdout
    assert "explainer /v1/models" in logged
    assert "transformer" not in logged


def failing(world: Project, name: str, hop: str = "") -> str:
    """Return what `status` says of failed requests, once the gateway has told it.

    Args:
        hop: Part of what it says; each hop is told when it has ended, and none waits for another.
    """
    lines = wait_until(
        lambda: [
            w for w in world.service(name)["warnings"] if "a request failed" in w and hop in w
        ],
        timeout=10,
        why=f"status of {name} tells of no failure",
    )
    return str(lines[0])


@pytest.mark.parametrize(
    ("name", "hop_told", "client_told"),
    [
        # 200 with a body that is no JSON is fine for HTTP; only the transformer minds.
        ("garbage", "transformer: POST /v1/models/garbage:predict was answered with 500", "JSON"),
        ("foreign", "predictor: POST /v1/models/foreign:predict was answered with 404", "404"),
        ("slow", "predictor: POST /v1/models/slow:predict: 504, activator request timeout", "504"),
    ],
)
def test_a_hop_that_fails_is_upstreams_answer_and_told_by_the_status(
    world: Project, name: str, hop_told: str, client_told: str
) -> None:
    host = f"{name}.default.example.com"
    status, answer = world.call(f"/v1/models/{name}:predict", ROWS, host=host)
    assert status == 500
    assert client_told in answer["error"]
    told = failing(world, name, hop_told)
    assert hop_told in told
    assert f"kserve-local logs {name}" in told
    logged = (world.state / "logs" / "gateway.log").read_text()
    assert hop_told.partition(": ")[2] in logged


def test_a_transformers_request_waits_while_the_predictor_starts(world: Project) -> None:
    """Each hop is held on its own, as each is scaled on its own."""
    (pod,) = world.service("hop")["components"][0]["revisions"][0]["pods"]
    world.run("delete", "pod", pod)
    status, answer = world.call("/v1/models/hop:predict", ROWS, host="hop.default.example.com")
    assert (status, answer["who"]) == (200, "predictor")


@pytest.mark.parametrize("protocol", ["v1", "v2", "grpc-v2"])
def test_a_real_model_behind_the_sdk_in_each_protocol(tmp_path: Path, protocol: str) -> None:
    model = sample("sklearn-iris", tmp_path / "iris") / "model"
    predictor = {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": str(model)}}
    transformer = hop(f"--predictor_protocol={protocol}")
    folder = write(tmp_path / "project", iris={"predictor": predictor, "transformer": transformer})
    tensor = {"name": "x", "shape": [2, 4], "datatype": "FP64", "data": FLAT}
    body: Any = ROWS if protocol == "v1" else {"inputs": [tensor]}
    call = "v1/models/iris:predict" if protocol == "v1" else "v2/models/iris/infer"
    with project(folder) as place:
        place.up()
        status, answer = place.call(f"/{call}", body, host="iris.default.example.com")
        assert status == 200
        found = answer["predictions"] if protocol == "v1" else answer["outputs"][0]["data"]
        assert found == [1, 1]


def test_a_transformer_that_does_not_start_is_named_with_its_log(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "project", iris={"predictor": mirror("predictor"), "transformer": hop()}
    )
    (folder / "hop.py").write_text("import no_such_module\n")
    with project(folder) as place:
        begun = monotonic()
        done = place.up(check=4)
        assert monotonic() - begun < 60
        assert "transformer rev 00001" in done.stderr
        assert "No module named 'no_such_module'" in done.stderr
        seen = place.service("iris")
        assert (seen["state"], seen["component"]) == ("Failed", "transformer")
        states = {c["component"]: c["state"] for c in seen["components"]}
        assert states == {"predictor": "Ready", "transformer": "Failed"}
        status, answer = place.call(
            "/v1/models/iris:predict", ROWS, host="iris.default.example.com"
        )
        assert status == 503
        assert "no_such_module" in answer["error"]
        # The model itself can be asked under its own name.
        host = "iris-predictor.default.example.com"
        assert place.call("/v1/models/iris:predict", ROWS, host=host)[0] == 200
        table = place.run("status").stdout
        assert "  transformer   False" in table


# prctl(2): PR_CAPBSET_DROP, CAP_NET_BIND_SERVICE; whoever is not root has not got it anyway.
_WITHOUT_LOW_PORTS = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 10, 0, 0, 0); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


@of_processes
@pytest.mark.skipif(sys.platform != "linux", reason="addresses of Services are Linux's")
def test_names_work_without_the_right_to_listen_on_port_80(tmp_path: Path) -> None:
    """Whoever uses a laptop is not root; `--predictor_host` means port 80 all the same."""
    folder = write(
        tmp_path / "project", hop={"predictor": mirror("predictor"), "transformer": hop()}
    )
    with project(folder) as place:
        up = ["up", "-d", "--wait", "--port", "auto", "--api-port", "auto"]
        command = [sys.executable, "-c", _WITHOUT_LOW_PORTS, "-m", "kserve_local.cli.main", *up]
        env = {**os.environ, **place.env}
        subprocess.run(command, cwd=folder, env=env, check=True, timeout=120, capture_output=True)
        status, answer = place.call("/v1/models/hop:predict", ROWS)
        assert (status, answer["who"]) == (200, "predictor")
        assert answer["headers"]["host"] == "hop-predictor.default"
