"""AWS Signature Version 4 for S3 requests. Pure.

Source: "Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)", Amazon
S3 API Reference. S3's own rules: the path is encoded once, and the payload's hash is a header.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import parse_qsl, quote, urlsplit


@dataclass(frozen=True, slots=True)
class AwsKeys:
    """An access key; `token` for temporary ones. The secret stays out of `repr`."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    token: str = field(default="", repr=False)


def encoded_path(key: str) -> str:
    """Return an object key as it stands in a URL and under its signature."""
    return quote(key, safe="/-_.~")


def signed(
    url: str,
    keys: AwsKeys,
    region: str,
    now: datetime,
    *,
    method: str = "GET",
    body: bytes = b"",
) -> Mapping[str, str]:
    """Return the headers that sign a request of `url`, whose path is `encoded_path`'s.

    Args:
        now: UTC; S3 takes no more than 15 minutes of difference.
    """
    payload = hashlib.sha256(body).hexdigest()
    parts = urlsplit(url)
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    headers = {
        "host": parts.netloc.rpartition("@")[2],
        "x-amz-content-sha256": payload,
        "x-amz-date": stamp,
    }
    if keys.token:
        headers["x-amz-security-token"] = keys.token
    names = ";".join(sorted(headers))
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    # By name and then value, not as one text: "=" comes after digits.
    encoded = sorted((quote(k, safe="-_.~"), quote(v, safe="-_.~")) for k, v in pairs)
    query = "&".join(f"{k}={v}" for k, v in encoded)
    canonical = "\n".join(
        (
            method,
            parts.path or "/",
            query,
            *(f"{name}:{headers[name]}" for name in sorted(headers)),
            "",
            names,
            payload,
        )
    )
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    text = "\n".join(
        ("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest())
    )
    key = f"AWS4{keys.secret_access_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    del headers["host"]
    return {
        **headers,
        "Authorization": f"AWS4-HMAC-SHA256 Credential={keys.access_key_id}/{scope}, "
        f"SignedHeaders={names}, Signature={signature}",
    }
