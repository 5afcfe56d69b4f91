"""`http(s)://host/path/file`: one file, or an archive that is unpacked.

Copies from KServe's storage initializer: the headers of `<host>-headers`, which Content-Type each
kind must have, the name of what is stored (a plain `.gz` is unpacked to `<name>.tar`, oddly), and
the error texts.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Mapping
from urllib.parse import unquote, urlsplit, urlunsplit

from kserve_local.errors import StorageError
from kserve_local.storage import archives
from kserve_local.storage.http import TRANSIENT, HttpClient, Limits, Refused, Response, Stop
from kserve_local.storage.remote import (
    ANONYMOUS,
    Listing,
    RemoteFile,
    SourceChanged,
    fingerprint,
    safe_path,
    unreachable,
)

_CONTENT_TYPES = {
    "zip": ("application/x-zip-compressed", "application/zip", "application/zip-compressed"),
    "tar": (
        "application/x-tar",
        "application/x-gtar",
        "application/x-gzip",
        "application/gzip",
    ),
}
_ANY_FILE = "application/octet-stream"
_DEFAULT_SUFFIX = {"zip": ".zip", "tar": ".tar"}


class WebSource:
    """One `http(s)://` URI."""

    def __init__(self, uri: str, env: Mapping[str, str], limits: Limits, stop: Stop) -> None:
        parts = urlsplit(uri)
        name = posixpath.basename(parts.path)
        if not name or not parts.hostname:
            raise StorageError(f"No filename contained in URI: {uri}")
        self._url = uri
        # What logs and messages show: without password.
        self._uri = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        self._env = env
        self._login = f"{parts.username or ''}:{parts.password or ''}"
        self._own = self._custom(uri)
        self._kind = archives.kind_of(parts.path) or archives.kind_of(parts.query)
        self._name = safe_path(unquote(name).replace("/", "_"), what=uri)
        if self._kind and not archives.kind_of(self._name):
            self._name += _DEFAULT_SUFFIX[self._kind]
        self._gunzip = not self._kind and self._name.endswith(".gz")
        self.http = HttpClient(limits, stop, env)

    @property
    def place(self) -> str:
        return repr(("http", self._uri))

    @property
    def endpoint(self) -> str:
        return ""

    @property
    def reader(self) -> str:
        if not self._own and self._login == ":":
            return ANONYMOUS
        return fingerprint(self._login, json.dumps(self._own, sort_keys=True))

    def close(self) -> None:
        self.http.close()

    def listing(self, note: Callable[[str], None]) -> Listing:
        response = self._head(note)
        file = RemoteFile(
            path=f"{self._name}.tar" if self._gunzip else self._name,
            url=self._url,
            size=response.length,
            tag=_tag(response),
            gunzip=self._gunzip,
        )
        return Listing((file,), unpack=bool(self._kind))

    def reach(self, note: Callable[[str], None]) -> None:
        try:
            empty = self._head(note, {"Range": "bytes=0-0"}).length == 0
        except Refused as error:
            if error.status != 416:
                raise
            empty = True
        if empty:
            raise StorageError(f"URI: {self._uri} is an empty file.", hint="upload it again")

    def _head(
        self, note: Callable[[str], None], extra: Mapping[str, str] | None = None
    ) -> Response:
        """Return the answer without its body, which `open` reads and may resume."""
        try:
            response = self.http.retried(
                lambda: self.http.get(
                    self._url,
                    lambda url: {**self._custom(url), **(extra or {})},
                    expect=(200, 206) if extra else (200,),
                ),
                note,
            )
        except Refused as error:
            if error.status in TRANSIENT or (extra and error.status == 416):
                raise
            raise self._words(error) from error
        response.close()
        found = response.headers.get("content-type")
        if self._kind:
            allowed = _CONTENT_TYPES[self._kind]
            if not found.startswith(allowed):
                raise StorageError(
                    f"URI: {self._uri} did not respond with any of following 'Content-Type': "
                    + ", ".join(allowed),
                    hint=f'the server says "{found or "nothing"}"; set it there',
                )
        elif not found.startswith(_ANY_FILE):
            raise StorageError(
                f"URI: {self._uri} did not respond with 'Content-Type': '{_ANY_FILE}'",
                hint=f'the server says "{found or "nothing"}"; set it there, or pack the model as '
                "a .zip or .tar.gz",
            )
        return response

    def open(self, file: RemoteFile, start: int, end: int | None = None) -> Response:
        ranged = {}
        if start or end is not None:
            ranged["Range"] = f"bytes={start}-{'' if end is None else end}"
            validator = file.tag.partition("|")[0]
            if not validator.startswith("W/"):
                ranged["If-Range"] = validator
        response = self.http.get(
            self._url, lambda url: {**self._custom(url), **ranged}, expect=(200, 206)
        )
        if file.tag and _tag(response).partition("|")[0] != file.tag.partition("|")[0]:
            response.close()
            raise SourceChanged
        return response

    def refused(self, error: Refused, file: RemoteFile) -> StorageError:
        if error.status in TRANSIENT:
            return unreachable(self._uri, error)
        return self._words(error)

    def digest(self, file: RemoteFile, response: Response) -> str:
        return ""

    def _custom(self, url: str) -> dict[str, str]:
        """Return the headers that the environment holds for a URL's host.

        Empty where a redirect leaves TLS: they are secrets.
        """
        host, scheme = urlsplit(url).hostname, urlsplit(url).scheme
        if scheme == "http" and urlsplit(self._url).scheme == "https":
            return {}
        text = self._env.get(f"{host}-headers") or "{}"
        try:
            data = json.loads(text)
        except ValueError:
            data = None
        if not isinstance(data, dict):
            # Not its text: it holds a secret.
            raise StorageError(
                f'the headers of host "{host}" are no JSON object',
                hint='write them as {"Authorization": "Bearer ..."} in the Secret',
            )
        return {str(name): str(value) for name, value in data.items()}

    def _words(self, error: Refused) -> StorageError:
        hint = {
            401: f'add a Secret with https-host "{urlsplit(self._uri).hostname}" and headers',
            403: f'check the headers for host "{urlsplit(self._uri).hostname}"',
            404: "check the address",
        }.get(error.status, f"the server says: {error.reason}")
        return StorageError(f"URI: {self._uri} returned a {error.status} response code.", hint=hint)


def _tag(response: Response) -> str:
    """Return what names the content: its ETag, else when it was changed (and how long it is)."""
    etag = response.headers.get("etag")
    if etag:
        return etag
    changed = response.headers.get("last-modified")
    return f"{changed}|{response.length}" if changed else ""
