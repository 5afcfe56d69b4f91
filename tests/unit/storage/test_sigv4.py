"""Signatures, against botocore's own signer."""

from __future__ import annotations

from datetime import UTC, datetime
from unittest.mock import patch
from urllib.parse import quote, urlencode

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.storage.sigv4 import AwsKeys, encoded_path, signed

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@given(key=text, query=st.dictionaries(text, text, max_size=3), token=st.sampled_from(["", "T="]))
def test_signatures_are_those_of_botocore(key: str, query: dict[str, str], token: str) -> None:
    """For any object key and query."""
    url = f"https://bucket.s3.eu-west-3.amazonaws.com/{encoded_path(key)}"
    if query:
        url += f"?{urlencode(query, quote_via=quote)}"
    ours = signed(url, AwsKeys("AKIA", "secret", token), "eu-west-3", NOW)
    request = AWSRequest("GET", url, headers={"X-Amz-Content-SHA256": EMPTY})
    request.context["payload_signing_enabled"] = True
    with patch("botocore.auth.get_current_datetime", return_value=NOW.replace(tzinfo=None)):
        auth = S3SigV4Auth(Credentials("AKIA", "secret", token or None), "s3", "eu-west-3")
        auth.add_auth(request)
    assert ours["Authorization"] == request.headers["Authorization"]
    assert ours["x-amz-date"] == request.headers["X-Amz-Date"]


def test_the_secret_is_not_in_the_repr() -> None:
    assert "secret" not in repr(AwsKeys("AKIA", "secret", "secret"))
