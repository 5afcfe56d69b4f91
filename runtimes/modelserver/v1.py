"""V1 over REST: bodies to payloads, what a model returns to bytes, CloudEvents included.

The payload is any JSON value, or the raw bytes when the content type is not one of four that mean
JSON. Source: KServe V1 protocol and KServe 0.20's behaviour.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from modelserver import cloudevents
from modelserver.errors import InvalidInput, UnrecognizedRequest

# Compared literally, as the reference does: parameters or other case make the body raw bytes.
_JSON_TYPES = frozenset(
    {
        None,
        "application/json",
        "application/cloudevents+json",
        "application/ld+json",
        "application/octet-stream",
    }
)
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def decode(body: bytes, headers: Mapping[str, str]) -> tuple[Any, cloudevents.Attributes | None]:
    """Return the payload, and the attributes if it came as a CloudEvent.

    Raises:
        UnrecognizedRequest: The body is not JSON.
        CloudEventError: The event's attributes make no sense.
        InvalidInput: `instances` is no list.
    """
    if "ce-specversion" in headers and cloudevents.is_binary(headers):
        payload, event = cloudevents.from_binary(body, headers)
    elif headers.get("content-type") in _JSON_TYPES:
        try:
            payload = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise UnrecognizedRequest(str(error)) from error
        event = None
        if type(payload) is dict and cloudevents.is_structured(payload):
            payload, event = cloudevents.from_structured(payload)
    else:
        payload, event = body, None
    if (
        type(payload) is dict
        and "instances" in payload
        and not isinstance(payload["instances"], list)
    ):
        raise InvalidInput('Expected "instances" to be a list')
    return payload, event


def encode(result: Any) -> tuple[bytes, bytes | None]:
    """Return body and content type of what a model returned; text and bytes go out as they are.

    Raises:
        TypeError: The result has no JSON form.
    """
    if isinstance(result, bytes):
        return result, None
    if isinstance(result, str):
        return result.encode(), None
    return orjson.dumps(result, option=_OPTIONS), b"application/json"


def encode_explanation(result: Any) -> tuple[bytes, bytes | None]:
    """Return body and content type of an explanation: an object, text or bytes.

    Raises:
        TypeError: It is anything else.
    """
    if not isinstance(result, dict | str | bytes):
        raise TypeError(f"an explanation is an object, text or bytes, not {type(result).__name__}")
    return encode(result)
