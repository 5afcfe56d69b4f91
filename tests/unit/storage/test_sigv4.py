"""Signatures, against botocore's own signer."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from unittest.mock import patch
from urllib.parse import quote, urlencode

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import example, given
from hypothesis import strategies as st

from kserve_local.storage.sigv4 import AwsKeys, encoded_path, signed

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@given(
    key=text,
    query=st.dictionaries(text, text, max_size=3),
    token=st.sampled_from(["", "T="]),
    method=st.sampled_from(["GET", "PUT"]),
    body=st.binary(max_size=20),
)
@example(key="0", query={"0": "0", "00": "0"}, token="", method="GET", body=b"")
def test_signatures_are_those_of_botocore(
    key: str, query: dict[str, str], token: str, method: str, body: bytes
) -> None:
    """For any object key, query and body."""
    url = f"https://bucket.s3.eu-west-3.amazonaws.com/{encoded_path(key)}"
    if query:
        url += f"?{urlencode(query, quote_via=quote)}"
    keys = AwsKeys("AKIA", "secret", token)
    ours = signed(url, keys, "eu-west-3", NOW, method=method, body=body)
    digest = hashlib.sha256(body).hexdigest()
    request = AWSRequest(method, url, data=body, headers={"X-Amz-Content-SHA256": digest})
    request.context["payload_signing_enabled"] = True
    with patch("botocore.auth.get_current_datetime", return_value=NOW.replace(tzinfo=None)):
        auth = S3SigV4Auth(Credentials("AKIA", "secret", token or None), "s3", "eu-west-3")
        auth.add_auth(request)
    assert ours["Authorization"] == request.headers["Authorization"]
    assert ours["x-amz-date"] == request.headers["X-Amz-Date"]


def test_the_secret_is_not_in_the_repr() -> None:
    assert "secret" not in repr(AwsKeys("AKIA", "secret", "secret"))
