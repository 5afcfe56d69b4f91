"""CloudEvents 1.0 around V1 bodies, in binary and structured mode.

A request that is an event gets its answer as an event with new id and time. `CE_TYPE`, `CE_SOURCE`
and `CE_MERGE` change the answer's attributes, as in KServe. The one module that reads the
environment while serving (KServe does so per request).
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from modelserver.errors import CloudEventError
from modelserver.oip import new_id

Attributes = dict[str, Any]

STRUCTURED_TYPE = "application/cloudevents+json"
_REQUIRED = ("id", "source", "specversion", "type")
_STRUCTURED = frozenset({"specversion", "id", "source", "type", "time", "data"})
_VERSIONS = ("0.3", "1.0")


def is_binary(headers: Mapping[str, str]) -> bool:
    """Return whether the request is an event in binary mode."""
    return all(f"ce-{name}" in headers for name in _REQUIRED)


def is_structured(payload: dict[str, Any]) -> bool:
    """Return whether a JSON object is an event in structured mode."""
    return payload.keys() >= _STRUCTURED


def from_binary(body: bytes, headers: Mapping[str, str]) -> tuple[Any, Attributes]:
    """Return data and attributes; data that are not JSON stay bytes.

    Raises:
        CloudEventError: Unknown specversion, or the body is to be a structured event and is none.
    """
    if headers.get("content-type") == STRUCTURED_TYPE:
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise CloudEventError(f"Failed to read event: {error}") from error
        missing = [n for n in _REQUIRED if not isinstance(document, dict) or n not in document]
        if missing:
            raise CloudEventError(f"Missing required attributes: {set(missing)}")
        return from_structured(document)
    attributes: Attributes = {
        name[3:]: value for name, value in headers.items() if name.startswith("ce-")
    }
    _check_version(attributes["specversion"])
    if "content-type" in headers:
        attributes["datacontenttype"] = headers["content-type"]
    try:
        return orjson.loads(body), attributes
    except orjson.JSONDecodeError:
        return body, attributes


def from_structured(document: dict[str, Any]) -> tuple[Any, Attributes]:
    """Return data and attributes of a structured event.

    Raises:
        CloudEventError: Unknown specversion.
    """
    _check_version(document["specversion"])
    attributes = {name: value for name, value in document.items() if name != "data"}
    return document.get("data"), attributes


def _check_version(version: object) -> None:
    if version not in _VERSIONS:
        raise CloudEventError(f"Found invalid specversion {version}")


def answer_attributes(model_name: str, request: Attributes | None) -> Attributes:
    """Return the attributes of the answer to an event (None: to an ordinary V1 body)."""
    attributes: Attributes = {}
    if request is not None and os.environ.get("CE_MERGE", "false").lower() == "true":
        attributes = dict(request)
        attributes.pop("id", None)
        attributes.pop("time", None)
        attributes.pop("datacontenttype", None)
    attributes["specversion"] = "1.0"
    attributes["id"] = new_id()
    attributes["source"] = os.environ.get("CE_SOURCE", f"io.kserve.inference.{model_name}")
    attributes["type"] = os.environ.get("CE_TYPE", "io.kserve.inference.response")
    attributes["time"] = datetime.now(UTC).isoformat()
    return attributes


def header_lines(attributes: Attributes) -> tuple[tuple[bytes, bytes], ...]:
    """Return attributes as the `ce-` headers of a binary mode answer."""
    return tuple(
        (f"ce-{name}".encode(), str(value).encode("utf-8"))
        for name, value in attributes.items()
        if value is not None
    )


def structured_body(attributes: Attributes, data: Any) -> bytes:
    """Return the structured mode answer; bytes travel as base64, None as no data.

    Raises:
        TypeError: The data have no JSON form.
    """
    body = dict(attributes)
    if isinstance(data, bytes):
        body["data_base64"] = base64.b64encode(data).decode()
    elif data is not None:
        body["data"] = data
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
