"""Services of several components, run for real: who is asked, and what a broken hop looks like."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.integration.component_world import hop, mirror, pair, write
from tests.integration.project import IN_DOCKER, Project, of_processes, project, sample, wait_until

PREDICT, EXPLAIN = "/v1/models/all:predict", "/v1/models/all:explain"
DOTTED = "/v1/models/a.b:explain"
FLAT = [6.8, 2.8, 4.8, 1.4, 6.0, 3.4, 4.5, 1.6]
ROWS = {"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    steps = [{"name": "one", "serviceName": "two"}, {"name": "last", "serviceName": "all"}]
    graph = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "InferenceGraph",
        "metadata": {"name": "chain"},
        "spec": {"nodes": {"root": {"routerType": "Sequence", "steps": steps}}},
    }
    folder = write(
        tmp_path_factory.mktemp("components") / "project",
        graph,
        all={
            "predictor": mirror("predictor"),
            "transformer": mirror("transformer", timeout=2),
            "explainer": mirror("explainer", timeout=2),
        },
        two={"predictor": mirror("predictor"), "explainer": mirror("explainer")},
        hop={
            "predictor": mirror("predictor", timeout=2),
            "transformer": hop(),
            "explainer": hop(),
        },
        pair={"predictor": pair()},
        rpc={
            "predictor": mirror("predictor", "--grpc", timeout=2),
            "transformer": hop("--predictor_protocol=grpc-v2"),
        },
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


@dataclass(frozen=True)
class Broken:
    """A component that fails, and who tells what of it.

    Args:
        where: The service that is asked, and for what.
        mode: What its mirror does, `WHO:MODE`.
        status / text: The client's answer, which is upstream's.
        told: What `status` says, each in a line of the log, too.
        hops: Component or step, status, and what went wrong, as the trace has it.
    """

    where: str
    mode: str
    status: int
    text: str
    told: tuple[str, ...]
    hops: tuple[tuple[str, int | str, str], ...]


PROTOCOL = "upstream connect error or disconnect/reset before headers. reset reason: protocol error"
LATE = "activator request timeout"
NO_JSON = "the answer is no JSON: <html>not a model server</html>"


def behind(caller: str, mode: str, status: int, why: str, *, says: str, text: str = "") -> Broken:
    """A predictor that fails behind a component of the SDK, which answers 500 for anything.

    Args:
        says: What the SDK makes of it.
        text: What `status` says of the predictor; empty: its status and why.
    """
    verb = "predict" if caller == "transformer" else "explain"
    return Broken(
        f"hop:{verb}", f"predictor:{mode}", 500, says,
        (
            f"predictor: POST /v1/models/hop:predict{text or f': {status}, {why}'}",
            f"{caller}: POST /v1/models/hop:{verb} was answered with 500: {says}",
        ),
        ((caller, 500, ""), ("predictor", status, why)),
    )  # fmt: skip


def itself(
    who: str, mode: str, status: int, why: str = "", *, body: str = "", told: str = ""
) -> Broken:
    """A transformer or explainer that fails before anybody else is asked.

    Args:
        why: Of an answer of the gateway's own.
        body: An answer of the component's own; what its client reads is the client's to judge.
        told: What `status` says of that; empty: nothing.
    """
    verb = "predict" if who == "transformer" else "explain"
    what = f"{who}: POST /v1/models/all:{verb}"
    said = f"{what}: {status}, {why}" if why else f"{what}{told}"
    return Broken(
        f"all:{verb}", f"{who}:{mode}", status, body or why.partition(" (")[0],
        (said,) if why or told else (), ((who, status, why),),
    )  # fmt: skip


def rpc(mode: str, http: int, text: str, why: str = "") -> Broken:
    """A gRPC port that is none.

    Args:
        text: What the client reads; `why`: what the log and the trace say beyond it.
    """
    return Broken(
        "rpc:infer", f"predictor:{mode}", 500, f'details = \\"{text}\\"',
        (
            f"predictor: ModelInfer: {http}, {text}",
            *((f"predictor: {why}",) if why else ()),
            "transformer: POST /v2/models/rpc/infer was answered with 500: AioRpcError",
        ),
        (("transformer", 500, ""), ("predictor", "UNAVAILABLE", why or text)),
    )  # fmt: skip


def step(mode: str, status: int, body: str, why: str) -> Broken:
    """A graph whose last step fails."""
    return Broken(
        "chain:", f"transformer:{mode}", status, body,
        (f"POST /: step last → all: answered with {status}: {why}",),
        (
            ("graph", status, ""), ("one", 200, ""), ("predictor", 200, ""),
            ("last", status, ""), ("transformer", status, ""),
        ),
    )  # fmt: skip


def beside(mode: str, status: int, why: str, *, says: str) -> Broken:
    """A predictor in the transformer's Pod: one component, so `status` tells nothing apart."""
    return Broken(
        "pair:predict", f"predictor:{mode}", 500, says, (),
        (("predictor", 500, ""), ("localhost:8085", status, why)),
    )  # fmt: skip


def bad(status: str) -> str:
    """How the SDK words a predictor's HTTP error."""
    return f"HTTPStatusError : , '{status}' for url 'http://hop-predictor.default/v1/models/hop"


FAILURES = [
    *(
        row
        for caller in ("transformer", "explainer")
        for row in (
            behind(caller, "gone", 502, "EOF", says=bad("502 Bad Gateway")),
            behind(caller, "slow", 504, LATE, says=bad("504 Gateway Timeout")),
            behind(
                caller, "garbage", 200, NO_JSON, text=f" was answered with 200: {NO_JSON}",
                says="JSONDecodeError : unexpected character",
            ),
            behind(
                caller, "noise", 502, f"{PROTOCOL} (it speaks TLS, not HTTP/1.1)",
                says=bad("502 Bad Gateway"),
            ),
            behind(
                caller, "missing", 404, "no such path",
                text=" was answered with 404: no such path",
                says="HTTPStatusError : no such path, '404 Not Found' for url",
            ),
        )
    ),
    *(
        row
        for who in ("transformer", "explainer")
        for row in (
            itself(who, "gone", 502, "EOF"),
            itself(who, "slow", 504, LATE),
            itself(who, "noise", 502, f"{PROTOCOL} (it speaks TLS, not HTTP/1.1)"),
            itself(who, "garbage", 200, body="<html>not a model server</html>"),
            itself(who, "missing", 404, body="no such path"),
            itself(
                who, "broken", 503, body="out of sorts",
                told=" was answered with 503: out of sorts",
            ),
        )
    ),
    rpc("gone", 502, "EOF"),
    rpc("noise", 502, PROTOCOL, "does not speak HTTP/2, which gRPC needs: it speaks TLS, not gRPC"),
    rpc("rest", 502, PROTOCOL, "not speak HTTP/2, which gRPC needs: it speaks HTTP/1.1, not gRPC"),
    rpc("slow", 504, LATE),
    step("gone", 502, "EOF", "EOF"),
    step("slow", 504, LATE, LATE),
    step("noise", 502, PROTOCOL, PROTOCOL),
    step("missing", 404, "no such path", "no such path"),
    step("broken", 503, "out of sorts", "out of sorts"),
]  # fmt: skip
if not IN_DOCKER:
    # Nobody in a container reaches the gateway's socket.
    FAILURES += [
        beside(
            "gone", 0, "RemoteProtocolError: Server disconnected", says="RemoteProtocolError : "
        ),
        beside("slow", 0, "ReadTimeout", says="ReadTimeout : "),
        beside("garbage", 200, "the answer cannot be read: ", says="JSONDecodeError : "),
        beside("noise", 0, "RemoteProtocolError: ", says="RemoteProtocolError : "),
        beside(
            "missing", 404, "no such path, '404 Not Found'", says="HTTPStatusError : no such path"
        ),
    ]


def in_log(log: Path, line: str) -> None:
    """Return once the gateway has told it there."""
    wait_until(lambda: line in log.read_text(), timeout=10, why=f"{log.name} has no: {line}")


@pytest.mark.parametrize("row", FAILURES, ids=lambda row: f"{row.where}-{row.mode}")
def test_a_hop_that_fails_is_upstreams_answer_and_told_by_status_log_and_trace(
    world: Project, row: Broken
) -> None:
    name, _, verb = row.where.partition(":")
    body: Any = {"instances": [row.mode]}
    path = f"/v1/models/{name}:{verb}" if verb else "/"
    if verb == "infer":
        tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": [row.mode]}
        path, body = f"/v2/models/{name}/infer", {"inputs": [tensor]}
    status, answer, trace = world.traced(path, body, host=f"{name}.default.example.com")
    assert status == row.status
    assert row.text in answer
    hops = trace["hops"]
    names = [h.get("step") or h.get("component") or h["target"] for h in hops]
    assert [(name, h["status"]) for name, h in zip(names, hops, strict=True)] == [
        (who, code) for who, code, _ in row.hops
    ]
    assert all(why in h.get("error", "") for h, (_, _, why) in zip(hops, row.hops, strict=True))
    log = world.state / "logs" / "gateway.log"
    for told in row.told:
        in_log(log, told.partition(": ")[2] if verb else told)
        if row.mode.endswith("gone"):
            # Of the same words as the log.
            failing(world, name, told)


@pytest.mark.parametrize("verb", ["predict", "explain"])
def test_predict_shows_each_hop_with_its_pod(world: Project, verb: str) -> None:
    """The caller's code knows nothing of it: the SDK passes the request's id on."""
    more = ["--explain"] if verb == "explain" else []
    caller = "explainer" if more else "transformer"
    done = world.run("predict", "hop", json.dumps(ROWS), "--trace", *more)
    assert json.loads(done.stdout)["who"] == "predictor"
    first, second, total = done.stderr.splitlines()
    assert first.split()[:3] == ["hop", caller, "00001"]
    assert second.startswith("  hop predictor 00001  ")
    assert first.endswith("  200")
    assert second.endswith("  200")
    assert " ms in all, trace id " in total
    data = world.json("predict", "hop", json.dumps(ROWS), "--trace", *more)
    one, two = data["trace"]["hops"]
    assert one["pod"].startswith(f"hop-{caller}-00001-deployment-")
    assert (two["pod"], "by" in two) == (second.split()[3], False)
    assert 0 <= two["start"] <= two["start"] + two["ms"] <= one["ms"] <= data["trace"]["ms"]


def test_a_failed_call_shows_its_hops_too(world: Project) -> None:
    body = json.dumps({"instances": ["predictor:gone"]})
    done = world.run("predict", "hop", body, "--trace", check=9)
    assert [line.split("  ")[-1] for line in done.stderr.splitlines()[1:2]] == ["502: EOF"]
    failed = json.loads(world.run("predict", "hop", body, "--trace", "--json", check=9).stdout)
    hops = failed["error"]["details"]["trace"]["hops"]
    assert [hop["status"] for hop in hops] == [500, 502]


def test_code_that_passes_nothing_on_is_told_by_its_pod(world: Project) -> None:
    """Its connection comes from the Pod's address; the trace says that this is what it goes by."""
    graph = world.traced("/", ROWS, host="chain.default.example.com")[2]
    assert [hop.get("by") for hop in graph["hops"]] == [None] * len(graph["hops"])
    own = {"instances": [[1.0]], "ask": "http://two-predictor.default/v1/models/two:predict"}
    *_, trace = world.traced("/v1/models/all:predict", own, host="all.default.example.com")
    one, two = trace["hops"]
    assert (one["component"], two["service"], two["component"]) == (
        "transformer", "two", "predictor",
    )  # fmt: skip
    assert two["by"] == ("pod" if sys.platform == "linux" else "service")


def test_a_trace_context_is_made_and_passed_on(world: Project) -> None:
    path, host = "/v1/models/two:predict", "two.default.example.com"
    made = world.call(path, ROWS, host=host)[1]["headers"]["traceparent"]
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", made)
    given = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "tracestate": "mine=1"}
    told = world.call(path, ROWS, host=host, headers=given)[1]["headers"]
    assert told["traceparent"][:36] == given["traceparent"][:36]
    assert told["traceparent"][36:52] != "cd" * 8
    assert told["tracestate"] == "mine=1"
    assert "x-request-id" not in told


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
        trace = place.json("predict", "iris", json.dumps(body), "--trace")["trace"]
        ended = {"status": "OK", "protocol": "grpc"} if protocol == "grpc-v2" else {"status": 200}
        first, second = trace["hops"]
        assert (first["component"], first["status"]) == ("transformer", 200)
        assert {key: second[key] for key in ended} == ended
        assert (second["component"], "by" in second) == ("predictor", False)
        if protocol == "grpc-v2":
            data = place.json("predict", "iris", json.dumps(body), "--protocol", "grpc", "--trace")
            hops = data["trace"]["hops"]
            assert [(h["component"], h["protocol"], h["status"], h["call"]) for h in hops] == [
                ("transformer", "grpc", "OK", "ModelInfer"),
                ("predictor", "grpc", "OK", "ModelInfer"),
            ]


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
