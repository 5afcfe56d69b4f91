"""`s3://bucket/prefix`: Amazon S3 and what speaks its protocol.

Copies from KServe's storage initializer which keys count (all under the prefix, no folder markers,
no empty objects; the exact key alone when there is one), where they go, and the error texts, which
are botocore's. The bytes come by our own resumable downloader; requests are signed by `sigv4`.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from urllib.parse import quote, urlencode, urlsplit

from kserve_local.errors import StorageError
from kserve_local.storage import archives
from kserve_local.storage.aws_credentials import S3Settings, s3_settings
from kserve_local.storage.http import (
    TRANSIENT,
    HttpClient,
    Limits,
    Refused,
    Response,
    Stop,
    tls_context,
)
from kserve_local.storage.remote import (
    ANONYMOUS,
    Listing,
    RemoteFile,
    filters,
    fingerprint,
    safe_path,
    touch,
    unreachable,
    wanted,
)
from kserve_local.storage.sigv4 import encoded_path, signed

_MAX_LISTING = 64 * 1024 * 1024
_MD5 = re.compile(r"[0-9a-f]{32}")


class S3Source:
    """One `s3://` URI. `reader` is the access key."""

    def __init__(self, uri: str, env: Mapping[str, str], limits: Limits, stop: Stop) -> None:
        parts = urlsplit(uri, allow_fragments=False)
        self.bucket = parts.netloc
        self.prefix = uri.partition("://")[2].partition("/")[2].lstrip("/")
        if not self.bucket:
            raise StorageError(f'"{uri}" names no bucket')
        self._uri = uri
        self._settings: S3Settings = s3_settings(env)
        self._region = self._settings.region
        self._allow, self._ignore = filters(env)
        tls = tls_context(self._settings.ca_bundle, verify=self._settings.verify)
        self.http = HttpClient(limits, stop, env, tls)

    @property
    def place(self) -> str:
        return repr(
            ("s3", self._settings.endpoint, self.bucket, self.prefix, self._allow, self._ignore)
        )

    @property
    def endpoint(self) -> str:
        return self._settings.endpoint or "AWS"

    @property
    def reader(self) -> str:
        keys = self._settings.keys
        return fingerprint(keys.access_key_id, keys.secret_access_key) if keys else ANONYMOUS

    def close(self) -> None:
        self.http.close()

    def listing(self, note: Callable[[str], None]) -> Listing:
        files: list[RemoteFile] = []
        for file, exact in self._objects(note):
            if exact:
                return self._found([file])
            files.append(file)
        return self._found(files)

    def reach(self, note: Callable[[str], None]) -> None:
        first = [file for file, _ in islice(self._objects(note), 1)]
        touch(self, self._found(first).files[0], note)

    def _objects(self, note: Callable[[str], None]) -> Iterator[tuple[RemoteFile, bool]]:
        """Yield the objects that count, and whether the URI is their key; asks page by page."""
        token = ""
        while True:
            query = {"list-type": "2", "prefix": self.prefix}
            if token:
                query["continuation-token"] = token
            root = self._page(query, note)
            for item in root.iter("Contents"):
                key, size = _text(item, "Key"), int(_text(item, "Size") or 0)
                if key.endswith("/") or size == 0:
                    continue
                exact = key == self.prefix
                name = key.rpartition("/")[2] if exact else key.removeprefix(self.prefix)
                path = safe_path(name, what=self._uri)
                if not wanted(path, self._allow, self._ignore):
                    continue
                file = RemoteFile(path, self._url(key), size, _text(item, "ETag").strip('"'))
                yield file, exact
            token = _text(root, "NextContinuationToken")
            if _text(root, "IsTruncated") != "true" or not token:
                return

    def _found(self, files: list[RemoteFile]) -> Listing:
        if not files:
            raise StorageError(
                f"Failed to fetch model. No model found in {self.prefix}.",
                hint=f'bucket "{self.bucket}"{self._where()} has no object with content under '
                "this prefix that the filters let through; check the path and the endpoint",
            )
        return Listing(
            tuple(files), unpack=len(files) == 1 and bool(archives.kind_of(files[0].path))
        )

    def _where(self) -> str:
        return f" at {self._settings.endpoint}" if self._settings.endpoint else ""

    def _page(self, query: Mapping[str, str], note: Callable[[str], None]) -> ET.Element:
        for moved in (False, True):
            url = f"{self._url('')}?{urlencode(query, quote_via=quote)}"
            try:
                response = self.http.retried(
                    lambda url=url: self._get(url, {}, (200,)),  # type: ignore[misc]  # mypy infers no default argument
                    note,
                )
                break
            except Refused as error:
                region = error.headers.get("x-amz-bucket-region") or _error(error)[2]
                elsewhere = error.status in (301, 307, 400) and region not in ("", self._region)
                if elsewhere and not moved:
                    self._region = region
                    continue
                if error.status in TRANSIENT:
                    raise
                raise self._words(error, "ListObjects") from error
        else:  # pragma: no cover - the second round always breaks or raises
            raise AssertionError
        try:
            root = ET.fromstring(response.read(_MAX_LISTING))
        except ET.ParseError as error:
            raise StorageError(
                f"Failed to fetch model. {url.partition('?')[0]} answers no S3 listing: {error}",
                hint="check the endpoint",
            ) from error
        finally:
            response.close()
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        return root

    def open(self, file: RemoteFile, start: int, end: int | None = None) -> Response:
        headers = {"If-Match": f'"{file.tag}"'} if file.tag else {}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end}"
        return self._get(file.url, headers, (200, 206))

    def put(self, data: bytes, note: Callable[[str], None]) -> None:
        """Write the object that the URI names.

        Raises:
            StorageError: In botocore's words.
        """
        for moved in (False, True):
            url = self._url(self.prefix)
            try:
                self.http.retried(lambda url=url: self._put(url, data), note).close()  # type: ignore[misc]  # mypy infers no default argument
                return
            except Refused as error:
                region = error.headers.get("x-amz-bucket-region") or _error(error)[2]
                if region not in ("", self._region) and not moved:
                    self._region = region
                    continue
                raise self._words(error, "PutObject", to="write to") from error

    def _put(self, url: str, data: bytes) -> Response:
        keys = self._settings.keys

        def send(at: str) -> Mapping[str, str]:
            if keys is None:
                return {}
            now = datetime.now(UTC)
            return signed(at, keys, self._region, now, method="PUT", body=data)

        return self.http.get(url, send, body=data, method="PUT", follow=False)

    def refused(self, error: Refused, file: RemoteFile) -> StorageError:
        if error.status in TRANSIENT:
            return unreachable(self._uri, error)
        words = self._words(error, "GetObject")
        return StorageError(
            f"Failed to download 1 files: {file.path}: {words.message}", hint=words.hint
        )

    def digest(self, file: RemoteFile, response: Response) -> str:
        # The ETag is the MD5 of an object that came in one part and is not encrypted with a key
        # of the customer or of KMS.
        kind = response.headers.get("x-amz-server-side-encryption", "AES256")
        own_key = response.headers.get("x-amz-server-side-encryption-customer-algorithm")
        plain = kind == "AES256" and not own_key
        return f"md5:{file.tag}" if plain and _MD5.fullmatch(file.tag) else ""

    def _url(self, key: str) -> str:
        settings = self._settings
        bucket = self.bucket
        # A certificate for *.s3... covers no bucket with dots in its name.
        virtual = settings.virtual and (bool(settings.endpoint) or "." not in bucket)
        if settings.accelerate and not settings.endpoint:
            base = f"https://{bucket}.s3-accelerate.amazonaws.com"
        elif not settings.endpoint:
            host = f"s3.{self._region}.amazonaws.com"
            base = f"https://{bucket}.{host}" if virtual else f"https://{host}/{bucket}"
        elif virtual:
            scheme, _, host = settings.endpoint.partition("://")
            base = f"{scheme}://{bucket}.{host}"
        else:
            base = f"{settings.endpoint}/{bucket}"
        return f"{base}/{encoded_path(key)}" if key else f"{base}/"

    def _get(self, url: str, headers: Mapping[str, str], expect: tuple[int, ...]) -> Response:
        keys = self._settings.keys

        def send(at: str) -> Mapping[str, str]:
            if keys is None:
                return headers
            return {**headers, **signed(at, keys, self._region, datetime.now(UTC))}

        return self.http.get(url, send, expect=expect, follow=False)

    def _words(self, error: Refused, operation: str, *, to: str = "read") -> StorageError:
        """Return botocore's text for an answer, with what helps.

        Args:
            to: What may not be done to the bucket.
        """
        code, message, _ = _error(error)
        code = code or str(error.status)
        said = f"An error occurred ({code}) when calling the {operation} operation: "
        said += message or error.reason
        if error.status == 403 and not self._settings.found:
            hint = (
                "no AWS credentials were found: add a Secret to the service account, or set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE"
            )
        elif error.status in (401, 403):
            key = self._settings.keys
            who = f"access key {key.access_key_id}" if key else "anonymous access"
            hint = f'{who} may not {to} bucket "{self.bucket}"{self._where()}; check the Secret'
        elif error.status == 404:
            hint = f'check the bucket "{self.bucket}" and the endpoint{self._where()}'
        else:
            hint = f'check the region "{self._region}" and the endpoint{self._where()}'
        return StorageError(said, hint=hint)


def _text(element: ET.Element, name: str) -> str:
    found = element.find(name)
    return (found.text or "") if found is not None else ""


def _error(error: Refused) -> tuple[str, str, str]:
    """Return code, message and region of an S3 error body."""
    try:
        root = ET.fromstring(error.body)
    except ET.ParseError:
        return "", "", ""
    return _text(root, "Code"), _text(root, "Message"), _text(root, "Region")
