"""`hf://owner/model[:revision]`: a snapshot of a Hugging Face Hub repository, by its HTTP API.

Reads `HF_ENDPOINT`, `HF_TOKEN` (else the user's login), `HF_HUB_OFFLINE`. Copies KServe's format
error and the Hub library's words. The library itself is not used: it takes about a second to
import, and our downloader already resumes, verifies and shares.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from kserve_local.errors import StorageError
from kserve_local.storage.http import TRANSIENT, HttpClient, Limits, Refused, Response, Stop
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

_ENDPOINT = "https://huggingface.co"
_MAX_LISTING = 64 * 1024 * 1024


def parse(uri: str) -> tuple[str, str]:
    """Return repository id and revision of a URI.

    Raises:
        StorageError: In KServe's words.
    """
    parts = uri.partition("://")[2].split("/")
    model, _, revision = parts[-1].partition(":")
    if len(parts) != 2 or not parts[0] or not model:
        raise StorageError(
            f"Invalid Hugging Face URI format. Expected 'hf://owner/model[:revision]', got '{uri}'"
        )
    return f"{parts[0]}/{model}", revision or "main"


def is_offline(env: Mapping[str, str]) -> bool:
    """Return whether the Hub's own variables ask for offline mode."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(env.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def token_of(env: Mapping[str, str]) -> str:
    """Return the token: `HF_TOKEN`, else that of the user's `hf auth login`."""
    token = env.get("HF_TOKEN") or env.get("HUGGING_FACE_HUB_TOKEN") or ""
    if token:
        return token.strip()
    home = Path(env.get("HOME") or Path.home())
    cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache")
    folder = Path(env.get("HF_HOME") or cache / "huggingface")
    try:
        return Path(env.get("HF_TOKEN_PATH") or folder / "token").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


class HuggingFaceSource:
    """One `hf://` URI."""

    def __init__(self, uri: str, env: Mapping[str, str], limits: Limits, stop: Stop) -> None:
        self._uri = uri
        self.repository, self.revision = parse(uri)
        self._endpoint = (env.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")
        self._secret = token_of(env)
        self._allow, self._ignore = filters(env)
        self.http = HttpClient(limits, stop, env)

    @property
    def place(self) -> str:
        return repr(
            ("hf", self._endpoint, self.repository, self.revision, self._allow, self._ignore)
        )

    @property
    def endpoint(self) -> str:
        return self._endpoint

    @property
    def reader(self) -> str:
        return fingerprint(self._secret) if self._secret else ANONYMOUS

    def close(self) -> None:
        self.http.close()

    def listing(self, note: Callable[[str], None]) -> Listing:
        revision = quote(self.revision, safe="")
        url = f"{self._endpoint}/api/models/{self.repository}/revision/{revision}?blobs=true"
        try:
            response = self.http.retried(lambda: self.http.get(url, self._headers), note)
        except Refused as error:
            if error.status in TRANSIENT:
                raise
            raise self._words(error) from error
        try:
            data = json.loads(response.read(_MAX_LISTING))
            commit = str(data["sha"])
            files = tuple(self._file(item, commit) for item in data["siblings"])
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"Failed to fetch model. {self._endpoint} does not speak the API of the Hugging "
                "Face Hub",
                hint="check HF_ENDPOINT",
            ) from error
        finally:
            response.close()
        files = tuple(f for f in files if wanted(f.path, self._allow, self._ignore))
        if not files:
            raise StorageError(
                f"Failed to fetch model. No model found in {self._uri}.",
                hint="the repository has no file that the filters let through",
            )
        return Listing(files)

    def reach(self, note: Callable[[str], None]) -> None:
        # A gated repository is listed for everybody; its files are not for everybody.
        files = self.listing(note).files
        touch(self, next((f for f in files if f.size), files[0]), note)

    def open(self, file: RemoteFile, start: int, end: int | None = None) -> Response:
        ranged = {"Range": f"bytes={start}-{'' if end is None else end}"}

        def headers(url: str) -> Mapping[str, str]:
            return {**self._headers(url), **(ranged if start or end is not None else {})}

        return self.http.get(file.url, headers, expect=(200, 206))

    def refused(self, error: Refused, file: RemoteFile) -> StorageError:
        if error.status in TRANSIENT:
            return unreachable(self._uri, error)
        return self._words(error)

    def digest(self, file: RemoteFile, response: Response) -> str:
        return file.digest

    def _headers(self, url: str) -> Mapping[str, str]:
        # The token is for the Hub, not for the storage that it redirects to.
        if self._secret and urlsplit(url)[:2] == urlsplit(self._endpoint)[:2]:
            return {"Authorization": f"Bearer {self._secret}"}
        return {}

    def _file(self, item: Mapping[str, Any], commit: str) -> RemoteFile:
        name = str(item["rfilename"])
        lfs = item.get("lfs") or {}
        sha256 = str(lfs.get("sha256") or lfs.get("oid") or "").removeprefix("sha256:")
        blob = str(item.get("blobId") or "")
        size = item.get("size", lfs.get("size"))
        digest = f"sha256:{sha256}" if sha256 else f"git:{blob}" if len(blob) == 40 else ""
        return RemoteFile(
            path=safe_path(name, what=self._uri),
            url=f"{self._endpoint}/{self.repository}/resolve/{commit}/{quote(name)}",
            size=int(size) if size is not None else None,
            tag=digest or f"{commit}/{name}",
            digest=digest,
        )

    def _words(self, error: Refused) -> StorageError:
        """Return the Hub library's words for an answer, with what helps."""
        code = error.headers.get("x-error-code")
        url = error.url.partition("?")[0]
        account = "the token's account" if self._secret else "anonymous access"
        if code == "RevisionNotFound":
            said = f"Revision Not Found for url: {url}."
            hint = f'"{self.repository}" has no branch, tag or commit "{self.revision}"'
        elif code == "GatedRepo":
            said = f"Cannot access gated repo for url {url}."
            hint = (
                f"accept the conditions at {self._endpoint}/{self.repository}, and give the token "
                "of that account as HF_TOKEN"
            )
        elif code == "EntryNotFound":
            said = f"Entry Not Found for url: {url}."
            hint = "the repository changed; try again"
        elif code == "RepoNotFound" or error.status in (401, 404):
            said = f"Repository Not Found for url: {url}."
            hint = (
                f'check the name "{self.repository}"; a private one needs a token in HF_TOKEN '
                f"that may read it (this was {account})"
            )
        else:
            said = f"{error.reason} for url: {url}"
            hint = f"{account} may not read it; check HF_TOKEN"
        return StorageError(f"{error.status} Client Error. {said}", hint=hint)
