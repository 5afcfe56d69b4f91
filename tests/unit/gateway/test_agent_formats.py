"""What the agent says and stores, compared with KServe's: flags, events, records, batches."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from kserve_local.gateway.agent_request import AgentRequest, AnswerCopy, canonical
from kserve_local.gateway.agent_settings import (
    AgentSettings,
    BatcherSettings,
    LoggerSettings,
    go_duration,
    read_args,
)
from kserve_local.gateway.batcher import Answer, BadBody, answers, read_instances, request_body
from kserve_local.gateway.logger import is_storage, names_cluster
from kserve_local.gateway.parquet import parquet_document
from kserve_local.gateway.payload import (
    COLUMNS,
    REQUEST,
    RESPONSE,
    Payload,
    csv_document,
    event_headers,
    json_document,
    json_objects,
    object_uri,
    rfc3339,
)
from kserve_local.gateway.payload_file import FILE, OLDER, Event, PayloadFile, document

ARGS = [
    *("--log-url", "http://sink.default", "--source-uri", "", "--log-mode", "all"),
    *("--inference-service", "iris", "--namespace", "default", "--endpoint", ""),
    *("--component", "predictor"),
]
NOON = datetime(2026, 1, 31, 12, 0, 0, 120_000, tzinfo=UTC)


def logs(*more: str) -> LoggerSettings:
    settings = read_args([*ARGS, *more]).logger
    assert settings is not None
    return settings


def payload(
    settings: LoggerSettings | None = None,
    kind: str = REQUEST,
    body: bytes = b'{"instances": [1]}',
    metadata: Mapping[str, list[str]] | None = None,
) -> Payload:
    return Payload(settings or logs(), kind, "id-1", "application/json", body, metadata or {}, NOON)


# Flags


def test_arguments_are_read_as_the_agent_reads_them() -> None:
    """An empty value is a value; what is not given is the flag's default."""
    settings = read_args(
        [
            "--enable-batcher",
            "--max-batchsize",
            "8",
            "--max-latency=250",
            *ARGS,
            "--metadata-headers",
            "X-Request-Id,X-B",
            "--metadata-annotations",
            "team=ml,empty=",
            "--log-batch-size",
            "5",
            "--log-batch-interval",
            "1m30s",
            "--logger-tls-skip-verify",
            "true",
            "--component-port",
            "8080",
        ]
    )
    assert settings.batcher == BatcherSettings(8, 0.25)
    logger = settings.logger
    assert logger is not None
    assert (logger.url, logger.mode, logger.endpoint) == ("http://sink.default", "all", "")
    assert logger.source == "http://localhost:9081/"
    assert logger.headers == {"X-Request-Id", "X-B"}
    assert logger.annotations == {"team": "ml", "empty": ""}
    assert (logger.batch_size, logger.batch_interval) == (5, 90.0)
    assert logger.skip_verify
    assert logger.certificate == "service-ca.crt"
    assert logger.store_format == "json"


@pytest.mark.parametrize(
    ("args", "settings"),
    [
        ([], AgentSettings(None, None)),
        (["--component-port", "8080"], AgentSettings(None, None)),
        (["--enable-batcher"], AgentSettings(None, BatcherSettings(32, 5.0))),
        (["--enable-batcher=false"], AgentSettings(None, None)),
        (
            ["--enable-batcher", "--max-batchsize", "0", "--max-latency", "-1"],
            AgentSettings(None, BatcherSettings(32, 5.0)),
        ),
    ],
)
def test_defaults(args: list[str], settings: AgentSettings) -> None:
    """32 instances, 5000 ms: the code's figures, not the documentation's."""
    assert read_args(args) == settings


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5.0), ("1m30s", 90.0), ("250ms", 0.25), ("1.5h", 5400.0), ("", 0.0), ("5", 0.0)],
)
def test_go_durations(text: str, seconds: float) -> None:
    assert go_duration(text) == pytest.approx(seconds)


# Events


def test_the_event_of_a_request() -> None:
    """Names, order of case and values as CloudEvents' Go SDK sends them; metadata is JSON."""
    event = payload(metadata={"X-Request-Id": ["a<b", "c"]})
    headers = dict(event_headers(event, NOON + timedelta(seconds=1)))
    assert headers == {
        "Ce-Specversion": "1.0",
        "Ce-Id": "id-1",
        "Ce-Source": "http://localhost:9081/",
        "Ce-Type": "org.kubeflow.serving.inference.request",
        "Ce-Time": "2026-01-31T12:00:00.12Z",
        "Ce-Inferenceservicename": "iris",
        "Ce-Namespace": "default",
        "Ce-Component": "predictor",
        "Ce-Endpoint": "",
        "Ce-Metadata": '{"X-Request-Id":["a\\u003cb","c"]}',
        "Ce-Recordedtime": "2026-01-31T12:00:01.12Z",
        "Content-Type": "application/json",
    }


def test_annotations_are_an_attribute_only_where_there_are_some() -> None:
    event = payload(logs("--metadata-annotations", "team=ml"), RESPONSE)
    headers = dict(event_headers(event, NOON))
    assert headers["Ce-Annotations"] == '{"team":"ml"}'
    assert headers["Ce-Metadata"] == "{}"
    assert headers["Ce-Type"] == "org.kubeflow.serving.inference.response"


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (NOON.replace(microsecond=0), "2026-01-31T12:00:00Z"),
        (NOON.replace(second=10, microsecond=0), "2026-01-31T12:00:10Z"),
        (NOON, "2026-01-31T12:00:00.12Z"),
        (NOON.astimezone(timezone(timedelta(hours=2))), "2026-01-31T12:00:00.12Z"),
    ],
)
def test_times_are_written_as_rfc3339_nano(moment: datetime, text: str) -> None:
    assert rfc3339(moment) == text


# Which URLs mean something here


@pytest.mark.parametrize(
    ("host", "only_there"),
    [
        ("default-broker", True),
        ("message-dumper.default", True),
        ("message-dumper.prod", True),
        ("broker-ingress.knative-eventing.svc.cluster.local", True),
        ("sink.other.svc", True),
        ("sink.knative-eventing", True),
        ("localhost", False),
        ("127.0.0.1", False),
        ("::1", False),
        ("example.com", False),
        ("host.docker.internal", False),
    ],
)
def test_names_of_services_are_told_from_hosts(host: str, only_there: bool) -> None:
    assert names_cluster(host, "prod") is only_there


@pytest.mark.parametrize(
    ("url", "storage"),
    [
        ("s3://b/p", True),
        ("s3a://b/p", True),
        ("gs://b", True),
        ("abfs://c@a/p", True),
        ("http://s3", False),
        ("https://gs", False),
        ("message-dumper", False),
    ],
)
def test_buckets_are_told_by_the_beginning_of_the_url(url: str, storage: bool) -> None:
    assert is_storage(url) is storage


# Records in storage


STORED = [
    *("--log-url", "s3://bucket/logs", "--log-mode", "all", "--inference-service", "iris"),
    *("--namespace", "default", "--component", "predictor", "--log-store-path", "daily"),
]


def stored(kind: str = REQUEST, **fields: Any) -> Payload:
    settings = read_args([*STORED, *fields.pop("more", [])]).logger
    assert settings is not None
    return payload(settings, kind, **fields)


def test_one_record_is_an_object_several_are_an_array() -> None:
    one, two = stored(), stored(RESPONSE, metadata={"X-A": ["1"]})
    assert isinstance(json.loads(json_document([one])), dict)
    assert json.loads(json_document([one, two])) == json.loads(json_objects([one, two]))
    assert isinstance(json.loads(json_objects([one])), list)
    assert json.loads(json_objects([one, two]))[1] == {
        "url": {
            "Scheme": "s3",
            "Opaque": "",
            "User": None,
            "Host": "bucket",
            "Path": "/logs",
            "RawPath": "",
            "OmitHost": False,
            "ForceQuery": False,
            "RawQuery": "",
            "Fragment": "",
            "RawFragment": "",
        },
        "bytes": "eyJpbnN0YW5jZXMiOiBbMV19",
        "contentType": "application/json",
        "reqType": "org.kubeflow.serving.inference.response",
        "id": "id-1",
        "sourceUri": json.loads(json_objects([one]))[0]["sourceUri"],
        "inferenceService": "iris",
        "namespace": "default",
        "component": "predictor",
        "metadata": {"X-A": ["1"]},
        "certName": "service-ca.crt",
        "occurrenceTime": "2026-01-31T12:00:00.12Z",
    }


def test_empty_fields_are_left_out_of_json() -> None:
    """omitempty: no endpoint, no metadata, no false; `bytes` is a pointer and stays."""
    found = json.loads(json_document([stored(body=b"")]))
    assert found["bytes"] == ""
    assert not {"endpoint", "metadata", "annotations", "tlsSkipVerify"} & found.keys()


def test_csv_has_a_header_and_quotes_as_go_does() -> None:
    event = stored(metadata={"X-A": ["1", 'say "hi"']})
    text = csv_document([event, stored(RESPONSE)]).decode()
    assert text.splitlines()[0] == ",".join(COLUMNS)
    first, second = list(csv.DictReader(io.StringIO(text)))
    assert first["metadata"] == '{"X-A":["1","say \\"hi\\""]}'
    assert first["url"] == "s3://bucket/logs"
    assert first["sourceUri"] == "http://localhost:9081/"
    assert second["metadata"] == second["annotations"] == ""
    assert second["tlsSkipVerify"] == "false"
    assert "\r" not in text


@pytest.mark.parametrize(
    ("url", "path", "uri"),
    [
        ("s3://bucket/logs", "daily", "s3://bucket/logs/default/iris/predictor/daily/id-1-request"),
        ("s3://bucket", "/daily/", "s3://bucket/default/iris/predictor/daily/id-1-request"),
        ("gs://b/a/b/", "p", "gs://b/a/b/default/iris/predictor/p/id-1-request"),
        ("abfs://box@acc/x", "p", "abfs://box/x/default/iris/predictor/p/id-1-request"),
    ],
)
def test_an_object_is_named_after_its_first_record(url: str, path: str, uri: str) -> None:
    event = stored(more=["--log-url", url, "--log-store-path", path])
    assert object_uri(event, "csv") == f"{uri}.csv"


def test_parquet_is_the_file_that_pyarrow_has_read() -> None:
    """`two_records.parquet` was read back with pyarrow, column by column."""
    second = stored(
        RESPONSE,
        body=b"\xff",
        metadata={"X-A": ["\u00e9"]},
        more=["--logger-tls-skip-verify", "true"],
    )
    known = (Path(__file__).parent / "two_records.parquet").read_bytes()
    assert parquet_document([stored(), second]) == known


# The batcher's bodies


@pytest.mark.parametrize(
    ("body", "instances"),
    [
        (b'{"instances": [[1, 2], [3, 4]]}', [[1.0, 2.0], [3.0, 4.0]]),
        (b'{"Instances": ["a"], "parameters": {}}', ["a"]),
        (b'{"instances": [null]}', [None]),
    ],
)
def test_instances_are_read_as_go_reads_them(body: bytes, instances: list[Any]) -> None:
    assert read_instances(body) == instances


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "can't Unmarshal body"),
        (b"{", "can't Unmarshal body"),
        (b"[1]", "can't Unmarshal body"),
        (b'{"instances": "no"}', "can't Unmarshal body"),
        (b"null", "no instances in the request"),
        (b"{}", "no instances in the request"),
        (b'{"instances": []}', "no instances in the request"),
        (b'{"instances": null}', "no instances in the request"),
        (b'{"inputs": [1]}', "no instances in the request"),
    ],
)
def test_what_cannot_be_batched(body: bytes, text: str) -> None:
    with pytest.raises(BadBody, match=text):
        read_instances(body)


def test_the_model_is_asked_with_instances_alone() -> None:
    """float64 numbers, sorted keys, HTML escaped: what Go makes of them."""
    body = (
        b'{"signature_name": "x", "instances": [{"b": 1.0, "a": "<"}, 1e21, 12345678901234567890]}'
    )
    assert request_body(read_instances(body)) == (
        b'{"instances":[{"a":"\\u003c","b":1},1e+21,12345678901234567000]}'
    )


OK_THREE = Answer(200, b'{"predictions": [1, 2.5, {"b": 1, "a": []}], "deployedModelId": "x"}')


@pytest.mark.parametrize(
    ("answer", "bodies"),
    [
        (
            OK_THREE,
            [
                '{"message":"","batchId":"B","predictions":[1]}',
                '{"message":"","batchId":"B","predictions":[2.5,{"a":[],"b":1}]}',
            ],
        ),
        (
            Answer(500, b'{"error": "<boom>"}'),
            [
                '{"message":"{\\"error\\": \\"\\u003cboom\\u003e\\"}",'
                '"batchId":"","predictions":null}'
            ]
            * 2,
        ),
        (
            Answer(200, b"oops"),
            [
                '{"message":"invalid character \'o\' looking for beginning of value",'
                '"batchId":"B","predictions":null}'
            ]
            * 2,
        ),
        (
            Answer(200, b'{"predictions": [1, 2]}'),
            [
                '{"message":"size of prediction is not equal to the size of instances",'
                '"batchId":"B","predictions":null}'
            ]
            * 2,
        ),
        (
            Answer(200, b"{}"),
            [
                '{"message":"size of prediction is not equal to the size of instances",'
                '"batchId":"B","predictions":null}'
            ]
            * 2,
        ),
        (
            Answer(200, b"[1, 2, 3]"),
            [
                '{"message":"json: cannot unmarshal array into Go value of type '
                'batcher.PredictionResponse","batchId":"B","predictions":null}'
            ]
            * 2,
        ),
        (
            Answer(200, b'{"predictions": "x"}'),
            [
                '{"message":"json: cannot unmarshal string into Go struct field '
                'PredictionResponse.predictions of type []interface {}",'
                '"batchId":"B","predictions":null}'
            ]
            * 2,
        ),
    ],
)
def test_every_client_gets_its_share(answer: Answer, bodies: list[str]) -> None:
    """Errors too are answered 200, to everybody in the batch."""
    assert [b.decode() for b in answers(answer, [1, 2], "B")] == bodies


# Requests and answers on their way


def test_a_request_is_read_as_far_as_the_agent_must_know_it() -> None:
    head = (
        b"POST /v1/models/iris:predict?x=1 HTTP/1.1\r\nHost: h\r\nce-id: mine\r\n"
        b"content-type: application/json\r\nX-request-ID: a\r\nx-request-id: b\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    request = AgentRequest(head)
    request.logged = True
    assert request.path == "/v1/models/iris:predict"
    assert not request.is_whole
    assert request.feed(b"2\r\nhi\r\n") == 2
    assert request.feed(b"1\r\n!\r\n0\r\n\r\n") == 1
    assert request.is_whole
    assert request.body() == b"hi!"
    request.prepare(frozenset({"X-Request-Id", "x-request-id", "Host"}))
    assert request.id == "mine"
    assert request.content_type == "application/json"
    assert request.metadata == {"X-Request-Id": ["a", "b"]}
    assert request.framed() == head + b"2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n"


def test_names_in_lower_case_match_no_header() -> None:
    """As the documentation writes them: Go compares with `X-Request-Id`."""
    assert canonical("x-request-id") == "X-Request-Id"
    request = AgentRequest(b"GET / HTTP/1.1\r\nX-Request-Id: a\r\n\r\n")
    request.prepare(frozenset({"x-request-id"}))
    assert request.metadata == {}
    assert len(request.id) == 36


@pytest.mark.parametrize(
    ("line", "known"), [(b"User-Agent: kube-probe/1.31", True), (b"K-Kubelet-Probe: queue", False)]
)
def test_probes_of_the_kubelet_are_known_by_their_agent(line: bytes, known: bool) -> None:
    assert AgentRequest(b"GET / HTTP/1.1\r\n" + line + b"\r\n\r\n").is_probe is known


EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


@pytest.mark.parametrize(
    ("raw", "status", "body", "logged"),
    [
        (HEAD + b"Content-Length: 2\r\n\r\nhi", 200, b"hi", True),
        (
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n",
            200,
            b"hi!",
            True,
        ),
        (HEAD + b"\r\nto the end", 200, b"to the end", True),
        (HEAD + b"Content-Length: 9\r\n\r\nhi", 200, b"hi", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
        (EARLY + HEAD + b"Content-Length: 0\r\n\r\n", 200, b"", True),
        (b"nonsense\r\n\r\n", 599, b"", False),
    ],
)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_answers_pass_unchanged_and_their_end_is_seen(
    raw: bytes, status: int, body: bytes, logged: bool, step: int
) -> None:
    copy = AnswerCopy(is_head=False)
    passed = b"".join(
        copy.feed(raw[at : at + step], collect=True) for at in range(0, len(raw), step)
    )
    passed += copy.end()
    assert passed == raw
    assert copy.status == status
    assert copy.body() == body
    assert (copy.is_done and not copy.is_broken) is logged


# The built-in sink


def test_the_sink_keeps_what_a_body_is() -> None:
    """JSON as JSON, text as text, anything else in base64."""
    event = {"id": "1"}
    assert document(Event("http://t", event, "application/json", b'{"a": 1}')) == {
        "id": "1",
        "target": "http://t",
        "datacontenttype": "application/json",
        "data": {"a": 1},
    }
    assert document(Event("http://t", event, "", b"hi"))["data"] == "hi"
    assert document(Event("http://t", event, "", b"\xff\x00"))["data_base64"] == "/wA="
    assert "data" not in document(Event("http://t", event, "", b""))
    # A message of gRPC may look like text by accident.
    assert document(Event("http://t", event, "application/grpc", b"hi"))["data_base64"] == "aGk="
    assert (
        document(Event("http://t", event, "application/grpc", b""))
        .keys()
        .isdisjoint({"data", "data_base64"})
    )
    large = document(Event("http://t", event, "", b"x" * (5 << 20)))
    assert (len(large["data"]), large["truncated"]) == (64 << 10, 5 << 20)


def test_the_sink_keeps_the_newest(tmp_path: Any) -> None:
    """Two files of half the size: at least half of what may be kept is."""
    sink = PayloadFile(tmp_path / "payloads", limit=4000)
    for number in range(200):
        sink.add([Event("http://t", {"id": str(number)}, "", b"x" * 50)])
    sizes = [(tmp_path / "payloads" / name).stat().st_size for name in (FILE, OLDER)]
    assert max(sizes) <= 2000
    lines = [
        json.loads(line)
        for name in (OLDER, FILE)
        for line in (tmp_path / "payloads" / name).read_text().splitlines()
    ]
    ids = [int(line["id"]) for line in lines]
    assert ids == list(range(ids[0], 200))
    assert len(ids) > 15
    assert (tmp_path / "payloads" / FILE).stat().st_mode & 0o777 == 0o600
