"""A logged request or response: its CloudEvent, and its record in storage. Pure.

Headers, JSON fields, CSV columns and object names are those of KServe v0.20's agent
(pkg/logger/worker.go, types.go, marshaller_*.go, store.go; traffic.md section 6.1).
"""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from kserve_local.gateway import gojson
from kserve_local.gateway.agent_settings import LoggerSettings

REQUEST = "org.kubeflow.serving.inference.request"
RESPONSE = "org.kubeflow.serving.inference.response"

COLUMNS = (
    "url",
    "bytes",
    "contentType",
    "reqType",
    "id",
    "sourceUri",
    "inferenceService",
    "namespace",
    "component",
    "endpoint",
    "metadata",
    "annotations",
    "certName",
    "tlsSkipVerify",
)
"""Of CSV and parquet, in order; the last one is a truth value, the others are texts."""


@dataclass(frozen=True, slots=True)
class Payload:
    """One body that was logged.

    Args:
        kind: `REQUEST` or `RESPONSE`.
        content_type: Of the request, for both kinds: as upstream.
        metadata: Request header -> its values.
        occurred: When the request arrived, or the response was complete. UTC.
    """

    settings: LoggerSettings
    kind: str
    id: str
    content_type: str
    body: bytes
    metadata: Mapping[str, Sequence[str]]
    occurred: datetime


def rfc3339(moment: datetime) -> str:
    """Return a time as Go's RFC3339Nano: no zeros at the end of the fraction."""
    text = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0").removesuffix(".")
    return f"{text}Z"


# CloudEvents


def attributes(payload: Payload, recorded: datetime) -> dict[str, str]:
    """Return the event's attributes in the order in which they are shown."""
    settings = payload.settings
    found = {
        "specversion": "1.0",
        "id": payload.id,
        "source": settings.source,
        "type": payload.kind,
        "time": rfc3339(payload.occurred),
        "inferenceservicename": settings.service,
        "namespace": settings.namespace,
        "component": settings.component,
        "endpoint": settings.endpoint,
        "metadata": _json(payload.metadata),
        "recordedtime": rfc3339(recorded),
    }
    if settings.annotations:
        found["annotations"] = _json(settings.annotations)
    return found


def event_headers(payload: Payload, recorded: datetime) -> list[tuple[str, str]]:
    """Return the headers of the event in CloudEvents' binary mode."""
    headers = [
        (f"Ce-{name.capitalize()}", value) for name, value in attributes(payload, recorded).items()
    ]
    if payload.content_type:
        headers.append(("Content-Type", payload.content_type))
    return headers


# Storage


def record(payload: Payload) -> dict[str, Any]:
    """Return the JSON object of a record; empty fields are left out as upstream does."""
    settings = payload.settings
    fields: dict[str, Any] = {
        "url": _go_url(settings.url),
        "bytes": base64.b64encode(payload.body).decode(),
        "contentType": payload.content_type,
        "reqType": payload.kind,
        "id": payload.id,
        "sourceUri": _go_url(settings.source),
        "inferenceService": settings.service,
        "namespace": settings.namespace,
        "component": settings.component,
        "endpoint": settings.endpoint,
        "metadata": {name: list(values) for name, values in payload.metadata.items()},
        "annotations": dict(settings.annotations),
        "certName": settings.certificate,
        "tlsSkipVerify": settings.skip_verify,
    }
    given = {name: value for name, value in fields.items() if value or name == "bytes"}
    return {**given, "occurrenceTime": rfc3339(payload.occurred)}


def json_objects(batch: Sequence[Payload]) -> bytes:
    """Return a JSON array of the records, which is what a marshaller is given."""
    return b"[" + b",".join(_object(record(payload)) for payload in batch) + b"]"


def json_document(batch: Sequence[Payload]) -> bytes:
    """Return the object's content in format `json`: one record alone, several as an array."""
    return _object(record(batch[0])) if len(batch) == 1 else json_objects(batch)


def row(payload: Payload) -> tuple[str, ...]:
    """Return the record's values in the order of `COLUMNS`, truth as `true` or `false`."""
    settings = payload.settings
    return (
        settings.url,
        base64.b64encode(payload.body).decode(),
        payload.content_type,
        payload.kind,
        payload.id,
        settings.source,
        settings.service,
        settings.namespace,
        settings.component,
        settings.endpoint,
        # Empty ones do not survive the way to the marshaller.
        _json(payload.metadata) if payload.metadata else "",
        _json(settings.annotations) if settings.annotations else "",
        settings.certificate,
        "true" if settings.skip_verify else "false",
    )


def csv_document(batch: Sequence[Payload]) -> bytes:
    """Return the object's content in format `csv`, as Go's encoding/csv writes it."""
    lines = [COLUMNS, *(row(payload) for payload in batch)]
    return "".join(",".join(map(_csv_field, line)) + "\n" for line in lines).encode()


def object_uri(first: Payload, extension: str) -> str:
    """Return where a batch is stored; it is named after its first record."""
    settings = first.settings
    url = urlsplit(settings.url)
    bucket = url.username or url.netloc
    parts = (
        unquote(url.path).lstrip("/"),
        settings.namespace,
        settings.service,
        settings.component,
        settings.store_path,
    )
    folder = posixpath.normpath("/".join(filter(None, parts))).lstrip("/")
    kind = first.kind.rpartition(".")[2]
    return f"{url.scheme}://{bucket}/{folder}/{first.id}-{kind}.{extension}"


def _json(value: object) -> str:
    return gojson.encode(_plain(value)).decode()


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _object(fields: Mapping[str, Any]) -> bytes:
    """Return a struct's JSON: its fields in their own order, the maps within them sorted."""
    parts = []
    for name, value in fields.items():
        if name in ("url", "sourceUri"):
            text = ",".join(f"{_json(key)}:{_json(item)}" for key, item in value.items())
            parts.append(f"{_json(name)}:{{{text}}}")
        else:
            parts.append(f"{_json(name)}:{_json(value)}")
    return f"{{{','.join(parts)}}}".encode()


def _go_url(text: str) -> dict[str, Any]:
    """Return Go's `url.URL` as JSON shows it: a struct, because it has no text form of its own."""
    url = urlsplit(text)
    return {
        "Scheme": url.scheme,
        "Opaque": "",
        "User": {} if url.username is not None else None,
        "Host": url.netloc.rpartition("@")[2],
        "Path": unquote(url.path),
        "RawPath": "" if unquote(url.path) == url.path else url.path,
        "OmitHost": False,
        "ForceQuery": False,
        "RawQuery": url.query,
        "Fragment": url.fragment,
        "RawFragment": "",
    }


def _csv_field(text: str) -> str:
    quoted = text == "\\." or text[:1].isspace() or any(c in text for c in ',"\r\n')
    return '"' + text.replace('"', '""') + '"' if quoted else text
