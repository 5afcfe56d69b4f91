"""A service with a logger and a batcher, as its user sees it: Pods, answers, events."""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.integration.project import Project, project, sample, wait_until

REQUEST = "org.kubeflow.serving.inference.request"
RESPONSE = "org.kubeflow.serving.inference.response"
ROWS = [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6], [5.1, 3.5, 1.4, 0.2]]
V2 = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROWS[0]}]}
MANIFEST = """apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: iris
  annotations: {{team: ml}}
spec:
  predictor:
    {more}
    logger:
      mode: all
      url: {url}
      metadataHeaders: [X-Tenant]
      metadataAnnotations: [team]
      {storage}
    model:
      modelFormat: {{name: sklearn}}
      storageUri: ./model
"""
BATCHER = "batcher: {maxBatchSize: 3, maxLatency: 2000}"


def write(own: Project, url: str, *, more: str = "", storage: str = "") -> None:
    text = MANIFEST.format(url=url, more=more, storage=storage)
    (own.folder / "manifest.yaml").write_text(text)


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = sample("sklearn-iris", tmp_path_factory.mktemp("agent") / "iris")
    with project(folder) as own:
        write(own, "http://message-dumper.default", more=BATCHER)
        own.up()
        yield own


def payloads(own: Project, *args: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = own.json("events", "--payloads", *args)["payloads"]
    return found


def with_id(own: Project, id: str, count: int) -> list[dict[str, Any]]:
    """Return the events of one request, once there are `count`."""

    def found() -> list[dict[str, Any]]:
        events = [e for e in payloads(own, "--tail", "1000") if e["id"] == id]
        return events if len(events) >= count else []

    events: list[dict[str, Any]] = wait_until(found, timeout=20, step=0.1)
    return events


def test_pods_show_the_agent(iris: Project) -> None:
    pod = json.loads(iris.run("get", "pods", "-o", "json").stdout)["items"][0]
    names = [c["name"] for c in pod["spec"]["containers"]]
    assert names == ["kserve-container", "agent"]
    statuses = pod["status"]["containerStatuses"]
    assert [s["ready"] for s in statuses] == [True, True]
    assert statuses[1]["image"] == "kserve/agent:latest"
    assert "2/2" in iris.run("get", "pods").stdout


def test_three_clients_share_one_batch(iris: Project) -> None:
    """And each gets the predictions of its own rows."""

    def ask(row: list[float]) -> tuple[int, Any]:
        return iris.call("/v1/models/iris:predict", {"instances": [row]})

    with ThreadPoolExecutor(3) as clients:
        answers = list(clients.map(ask, ROWS))
    assert [status for status, _ in answers] == [200] * 3
    assert [body["predictions"] for _, body in answers] == [[1], [1], [0]]
    assert len({body["batchId"] for _, body in answers}) == 1


def test_a_batched_request_is_logged_and_its_answer_is_not(iris: Project) -> None:
    headers = {"Ce-Id": "batched", "X-Tenant": "a"}
    status, _ = iris.call("/v1/models/iris:predict", {"instances": ROWS}, headers=headers)
    assert status == 200
    iris.call("/v2/models/iris/infer", V2, headers={"Ce-Id": "single"})
    both = with_id(iris, "single", 2)
    assert {e["type"] for e in both} == {REQUEST, RESPONSE}
    (event,) = with_id(iris, "batched", 1)
    assert event["type"] == REQUEST
    assert event["data"] == {"instances": ROWS}
    assert event["source"] == "http://localhost:9081/"
    assert event["inferenceservicename"] == "iris"
    assert (event["namespace"], event["component"]) == ("default", "predictor")
    assert json.loads(event["metadata"]) == {"X-Tenant": ["a"]}
    assert json.loads(event["annotations"]) == {"team": "ml"}
    assert event["target"] == "http://message-dumper.default"


def test_a_grpc_call_is_logged_as_it_was_framed(iris: Project) -> None:
    """Both messages with the five bytes before them, in base64: they are no text."""
    body = {"inputs": [{**V2["inputs"][0], "data": ROWS[0]}]}
    answer = iris.run("predict", "iris", json.dumps(body), "--protocol", "grpc").stdout
    assert json.loads(answer)["outputs"][0]["data"] == [1]

    def found() -> dict[str, dict[str, Any]]:
        events = payloads(iris, "--tail", "1000")
        return {e["type"]: e for e in events if e["datacontenttype"] == "application/grpc"}

    wait_until(lambda: len(found()) == 2, timeout=20, step=0.1)
    for event in found().values():
        frame = base64.b64decode(event["data_base64"])
        assert frame[:1] == b"\0"
        assert int.from_bytes(frame[1:5], "big") == len(frame) - 5
    assert b"iris" in base64.b64decode(found()[REQUEST]["data_base64"])


def test_events_are_shown_by_service_and_followed(iris: Project) -> None:
    iris.call("/v2/models/iris/infer", V2, headers={"Ce-Id": "shown"})
    with_id(iris, "shown", 2)
    text = iris.run("events", "--payloads", "iris", "--tail", "1").stdout
    assert len(text.splitlines()) == 1
    assert "iris/predictor" in text
    assert payloads(iris, "other") == []
    assert payloads(iris, "--namespace", "elsewhere") == []
    assert iris.run("events", "--payloads", "--warnings", check=2).stderr
    assert iris.run("events", "--tail", "1", check=2).stderr


def test_status_and_validate_know_both(iris: Project) -> None:
    service = iris.service("iris")
    assert service["notes"] == []
    assert service["agents"] == [
        "batcher: :predict waits for 3 instances, at most 2000 ms",
        "logger: requests and responses go to http://message-dumper.default, kept here: "
        "kserve-local events --payloads",
    ]
    assert "kept here" in iris.run("status").stdout
    assert "0 warnings" in iris.run("validate").stderr + iris.run("validate").stdout


def test_events_outlive_the_gateway_that_kept_them(iris: Project) -> None:
    iris.call("/v2/models/iris/infer", V2, headers={"Ce-Id": "before"})
    with_id(iris, "before", 2)
    pid = int(iris.run_file["gateway"]["pid"])
    os.kill(pid, signal.SIGKILL)

    def answered() -> bool:
        try:
            return iris.call("/v2/models/iris/infer", V2, headers={"Ce-Id": "after"})[0] == 200
        except OSError:
            return False

    wait_until(answered, timeout=30)
    with_id(iris, "after", 2)
    with_id(iris, "before", 2)


class _Sink(BaseHTTPRequestHandler):
    seen: list[tuple[dict[str, str], bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((dict(self.headers.items()), body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def test_a_sink_of_the_users_is_called(iris: Project) -> None:
    """The new URL makes a new revision, as every change of a Pod does."""
    seen: list[tuple[dict[str, str], bytes]] = []
    handler = type("Handler", (_Sink,), {"seen": seen})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        write(iris, f"http://127.0.0.1:{server.server_port}/log")
        iris.up()
        revisions = iris.service("iris")["revisions"]
        assert revisions[0]["name"].endswith("00002")
        iris.call("/v1/models/iris:predict", {"instances": ROWS}, headers={"Ce-Id": "mine"})
        wait_until(lambda: len(seen) >= 2, timeout=20)
    finally:
        server.shutdown()
        server.server_close()
    by_type = {headers["Ce-Type"]: (headers, body) for headers, body in seen}
    assert json.loads(by_type[REQUEST][1]) == {"instances": ROWS}
    assert json.loads(by_type[RESPONSE][1]) == {"predictions": [1, 1, 0]}
    assert by_type[RESPONSE][0]["Ce-Id"] == "mine"


def test_records_go_to_a_bucket_or_its_mirror(iris: Project) -> None:
    """With batches of two: request and answer become one object, named after the request."""
    (iris.folder / "kserve-local.yaml").write_text(
        'storage: {mirrors: {"s3://logs/": ./bucket/}}\n'
    )
    storage = (
        "storage: {path: daily, key: credentials, parameters: {format: csv}}\n"
        "      batchSize: 2\n      batchInterval: 30s"
    )
    write(iris, "s3://logs/payloads", storage=storage)
    iris.run("down")
    iris.up()
    iris.call("/v1/models/iris:predict", {"instances": ROWS}, headers={"Ce-Id": "stored"})
    path = iris.folder / "bucket/payloads/default/iris/predictor/daily/stored-request.csv"
    text: str = wait_until(lambda: path.exists() and path.read_text(), timeout=20)
    lines = text.splitlines()
    assert lines[0].startswith("url,bytes,contentType,reqType,id,")
    assert len(lines) == 3
    assert REQUEST in lines[1]
    assert RESPONSE in lines[2]


def test_a_batch_that_is_not_full_is_written_at_the_end(iris: Project) -> None:
    storage = (
        "storage: {path: rest, key: credentials, parameters: {format: json}}\n"
        "      batchSize: 100\n      batchInterval: 1h"
    )
    # The URL changes too: `storage` alone is not in the Pod's template, so it makes no revision.
    write(iris, "s3://logs/last", storage=storage)
    iris.up()
    iris.call("/v1/models/iris:predict", {"instances": ROWS}, headers={"Ce-Id": "last"})
    iris.run("down")
    path = iris.folder / "bucket/last/default/iris/predictor/rest/last-request.json"
    records = json.loads(path.read_text())
    assert [r["reqType"] for r in records] == [REQUEST, RESPONSE]
    iris.up()


def test_what_cannot_be_stored_is_an_event_of_the_pod(iris: Project) -> None:
    storage = "storage: {path: daily, key: credentials, parameters: {format: json}}"
    write(iris, "abfs://box@account/payloads", storage=storage)
    iris.up()
    iris.call("/v1/models/iris:predict", {"instances": ROWS})

    def told() -> bool:
        return "PayloadNotStored" in iris.run("events", "--warnings").stdout

    wait_until(told, timeout=20, step=0.3)
    text = iris.run("events", "--warnings").stdout
    assert "nothing here writes abfs://" in text
    assert "mirrors" in text
    notes = iris.service("iris")["notes"]
    assert any("abfs" in note for note in notes)


def test_the_state_folder_is_private(iris: Project) -> None:
    folder: Path = iris.state / "payloads"
    assert folder.stat().st_mode & 0o077 == 0
    assert all(p.stat().st_mode & 0o077 == 0 for p in folder.iterdir())
