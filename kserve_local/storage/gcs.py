"""`gs://bucket/path`: Google Cloud Storage by its JSON API.

Copies from KServe's storage initializer which objects count (all under `path/`, else the object
`path` itself) and anonymous access without credentials. Honours `STORAGE_EMULATOR_HOST`. (The
object libraries list by the XML API, which emulators lack.)
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from kserve_local.errors import StorageError
from kserve_local.storage import archives
from kserve_local.storage.google_credentials import READ, GoogleToken
from kserve_local.storage.http import TRANSIENT, HttpClient, Limits, Refused, Response, Stop
from kserve_local.storage.remote import (
    Listing,
    RemoteFile,
    SourceChanged,
    filters,
    safe_path,
    touch,
    unreachable,
    wanted,
)

_ENDPOINT = "https://storage.googleapis.com"
_FIELDS = "name,size,generation,etag,md5Hash,contentEncoding"
_MAX_LISTING = 64 * 1024 * 1024


class GcsSource:
    """One `gs://` URI."""

    def __init__(
        self,
        uri: str,
        env: Mapping[str, str],
        limits: Limits,
        stop: Stop,
        *,
        scope: str = READ,
    ) -> None:
        self.bucket, _, self.path = uri.partition("://")[2].partition("/")
        if not self.bucket:
            raise StorageError(f'"{uri}" names no bucket')
        emulator = env.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
        if emulator and "://" not in emulator:
            emulator = f"http://{emulator}"
        self._endpoint = emulator or _ENDPOINT
        self._uri = uri
        self._allow, self._ignore = filters(env)
        self.http = HttpClient(limits, stop, env)
        self._token = GoogleToken(env, self.http, scope)
        self._note: Callable[[str], None] = lambda _: None

    @property
    def place(self) -> str:
        return repr(("gs", self._endpoint, self.bucket, self.path, self._allow, self._ignore))

    @property
    def endpoint(self) -> str:
        return self._endpoint

    @property
    def reader(self) -> str:
        return self._token.reader

    def close(self) -> None:
        self.http.close()

    def listing(self, note: Callable[[str], None]) -> Listing:
        files = tuple(self._found(note))
        one = len(files) == 1 and bool(archives.kind_of(files[0].path))
        return Listing(files, unpack=one)

    def reach(self, note: Callable[[str], None]) -> None:
        touch(self, next(self._found(note)), note)

    def _found(self, note: Callable[[str], None]) -> Iterator[RemoteFile]:
        """Yield the files that the filters let through, one at least; asks page by page."""
        empty = True
        for file in self._named(note):
            if wanted(file.path, self._allow, self._ignore):
                empty = False
                yield file
        if empty:
            raise StorageError(
                f"Failed to fetch model. No model found in {self._uri}.",
                hint=f'bucket "{self.bucket}" has no object of this name or under it that the '
                "filters let through",
            )

    def _named(self, note: Callable[[str], None]) -> Iterator[RemoteFile]:
        """Yield what lies below the path, or else is the object of this name."""
        self._note = note
        prefix = self.path if self.path.endswith("/") or not self.path else f"{self.path}/"
        found = False
        token = ""
        while True:
            query = {"prefix": prefix, "fields": f"items({_FIELDS}),nextPageToken"}
            if token:
                query["pageToken"] = token
            page = self._json(f"{self._objects}?{urlencode(query)}")
            for item in page.get("items") or ():
                name = str(item["name"])
                relative = name.removeprefix(prefix)
                if relative.strip() and not relative.endswith("/"):
                    found = True
                    yield self._file(item, relative)
            token = str(page.get("nextPageToken") or "")
            if not token:
                break
        if not found and self.path and not self.path.endswith("/"):
            try:
                item = self._json(f"{self._url(self.path)}?{urlencode({'fields': _FIELDS})}")
            except _NoObject:
                return
            yield self._file(item, self.path.rpartition("/")[2])

    def open(self, file: RemoteFile, start: int, end: int | None = None) -> Response:
        # Compressed objects come as they are stored, so that size and checksum are the listing's.
        headers = {"Accept-Encoding": "gzip"} if file.gunzip else {}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end}"
        try:
            return self._get(file.url, headers, (200, 206))
        except Refused as error:
            # The generation in the URL is gone: overwritten or deleted since the listing.
            if error.status == 404 and start == 0 and end is None:
                raise SourceChanged from error
            raise

    def put(self, data: bytes, note: Callable[[str], None]) -> None:
        """Write the object that the URI names; the source needs the scope `WRITE`.

        Raises:
            StorageError: In google-cloud-storage's words.
        """
        query = urlencode({"uploadType": "media", "name": self.path})
        bucket = quote(self.bucket, safe="")
        url = f"{self._endpoint}/upload/storage/v1/b/{bucket}/o?{query}"

        def send() -> Response:
            headers = {
                **self._token.headers(note),
                "Content-Type": "application/octet-stream",
            }
            return self.http.get(url, lambda _: headers, body=data, follow=False)

        try:
            self.http.retried(send, note).close()
        except Refused as error:
            raise self._words(error, to="write to") from error

    def refused(self, error: Refused, file: RemoteFile) -> StorageError:
        return self._words(error)

    def digest(self, file: RemoteFile, response: Response) -> str:
        return file.digest

    @property
    def _objects(self) -> str:
        return f"{self._endpoint}/storage/v1/b/{quote(self.bucket, safe='')}/o"

    def _url(self, name: str) -> str:
        return f"{self._objects}/{quote(name, safe='')}"

    def _file(self, item: Mapping[str, Any], relative: str) -> RemoteFile:
        name = str(item["name"])
        md5 = str(item.get("md5Hash") or "")
        query = {"alt": "media"}
        if item.get("generation"):
            query["generation"] = str(item["generation"])
        return RemoteFile(
            path=safe_path(relative, what=self._uri),
            url=f"{self._url(name)}?{urlencode(query)}",
            size=int(item.get("size") or 0),
            tag=f"{item.get('generation') or ''}/{item.get('etag') or ''}/{md5}",
            digest=f"md5:{base64.b64decode(md5).hex()}" if md5 else "",
            gunzip=item.get("contentEncoding") == "gzip",
        )

    def _get(self, url: str, headers: Mapping[str, str], expect: tuple[int, ...]) -> Response:
        login = self._token.headers(self._note)
        return self.http.get(url, lambda _: {**login, **headers}, expect=expect, follow=False)

    def _json(self, url: str) -> dict[str, Any]:
        try:
            response = self.http.retried(lambda: self._get(url, {}, (200,)), self._note)
        except Refused as error:
            if error.status == 404 and not url.startswith(f"{self._objects}?"):
                raise _NoObject from error
            if error.status in TRANSIENT:
                raise
            raise self._words(error) from error
        try:
            data = json.loads(response.read(_MAX_LISTING))
        except ValueError as error:
            raise StorageError(
                f"Failed to fetch model. {self._endpoint} does not speak the JSON API of Google "
                "Cloud Storage"
            ) from error
        finally:
            response.close()
        return data if isinstance(data, dict) else {}

    def _words(self, error: Refused, *, to: str = "read") -> StorageError:
        """Return google-cloud-storage's text for an answer, with what helps."""
        if error.status in TRANSIENT:
            return unreachable(self._uri, error)
        said = error.reason
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = str(json.loads(error.body)["error"]["message"])
        if error.status in (401, 403):
            hint = (
                f'{self._token.who} may not {to} bucket "{self.bucket}"; check the Secret, or '
                "gcloud auth application-default login"
            )
        else:
            hint = f'check the bucket "{self.bucket}"'
        method = "GET" if to == "read" else "POST"
        return StorageError(
            f"{error.status} {method} {error.url.partition('?')[0]}: {said}",
            hint=hint,
        )


class _NoObject(Exception):
    pass
