"""What a remote source is to the downloader: a list of files with identities, and a way to read
each from an offset.

`Source` is implemented by the schemes (`web`, `s3`, `gcs`, `huggingface`); `download` uses it and
knows none of them. Filters are KServe's `STORAGE_ALLOW_PATTERNS` and `STORAGE_IGNORE_PATTERNS`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Protocol

from kserve_local.errors import StorageError
from kserve_local.storage.http import Broken, HttpClient, Refused, Response

ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a source.

    Args:
        path: Where it goes, relative, with `/`.
        url: Where it is read.
        size: In bytes, None when the source does not tell before the transfer.
        tag: Names this content: equal tags are equal contents. Empty when the source has none.
        digest: `md5:`, `sha256:` or `git:` (a git blob id) and hex digits; empty when unknown.
        gunzip: The transfer is compressed, the file is not.
    """

    path: str
    url: str
    size: int | None
    tag: str
    digest: str = ""
    gunzip: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a source at one moment.

    Args:
        unpack: They are packed: one archive, or layers.
        folder: They are an image's layers, the lowest first, and this folder of it is the content.
    """

    files: tuple[RemoteFile, ...]
    unpack: bool = False
    folder: str = ""


class SourceChanged(Exception):
    """A file is no longer what the listing said."""


class Source(Protocol):
    """One storageUri with its credentials. All calls block and run in worker threads."""

    http: HttpClient

    @property
    def place(self) -> str:
        """What the URI means: endpoint and path. Equal places share a cache entry."""

    @property
    def endpoint(self) -> str:
        """The URL that the URI's scheme stands for; empty where the URI itself says where."""

    @property
    def reader(self) -> str:
        """Stands for the credentials without telling them; `ANONYMOUS` for none."""

    def listing(self, note: Callable[[str], None]) -> Listing:
        """Return the files.

        Raises:
            StorageError: The source said no, in KServe's words.
            Broken: It cannot be reached, or keeps failing.
        """

    def reach(self, note: Callable[[str], None]) -> None:
        """Return if there is a file that may be read, without reading more of it than a byte.

        Raises:
            StorageError, Broken, Refused: As `listing`; as `refused` for the file.
        """

    def open(self, file: RemoteFile, start: int, end: int | None = None) -> Response:
        """Return the file's bytes from `start` (to `end`, inclusive): status 206, or 200 for all.

        Raises:
            SourceChanged: It is not the listed content any more.
            Refused, Broken: As `HttpClient.get`.
        """

    def refused(self, error: Refused, file: RemoteFile) -> StorageError:
        """Return why a file cannot be read, in KServe's words."""

    def digest(self, file: RemoteFile, response: Response) -> str:
        """Return the digest to check, with what the answer's headers say."""

    def close(self) -> None:
        """Close connections."""


def touch(source: Source, file: RemoteFile, note: Callable[[str], None]) -> None:
    """Read the first byte of a file: who may list files may not always read them.

    Raises:
        StorageError, Broken: As `Source.reach`.
    """
    if file.size == 0:
        return
    try:
        source.http.retried(lambda: source.open(file, 0, 0), note).close()
    except Refused as error:
        raise source.refused(error, file) from error


def fingerprint(*secrets: str) -> str:
    """Return what stands for credentials in the cache's books."""
    return hashlib.sha256("\0".join(secrets).encode()).hexdigest()[:24]


def _patterns(text: str) -> list[str]:
    try:
        found = json.loads(text)
    except ValueError:
        found = text.split(",")
    items = found if isinstance(found, list) else [found]
    return [str(item).strip() for item in items if str(item).strip()]


def filters(env: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the patterns a path must match one of (if any), and those it must not."""
    return (
        _patterns(env.get("STORAGE_ALLOW_PATTERNS", "")),
        _patterns(env.get("STORAGE_IGNORE_PATTERNS", "")),
    )


def wanted(path: str, allow: list[str], ignore: list[str]) -> bool:
    """Return whether the filters let a relative path through."""
    if allow and not any(fnmatch(path, pattern) for pattern in allow):
        return False
    return not any(fnmatch(path, pattern) for pattern in ignore)


def safe_path(path: str, *, what: str) -> str:
    """Return the path without empty and `.` parts.

    Raises:
        StorageError: It would leave the folder it is put into.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path or not parts:
        raise StorageError(
            f'{what} has a name that cannot be a file: "{path}"',
            hint="rename it, or leave it out with STORAGE_IGNORE_PATTERNS",
        )
    return str(PurePosixPath(*parts))


def unreachable(uri: str, error: Broken | Refused) -> StorageError:
    """Return the error for a source that stays out of reach."""
    if isinstance(error, Refused):
        asked = error.retry_after
        later = f", it asks to wait {asked:.0f} s" if asked else ""
        return StorageError(
            f"Failed to fetch model. {uri}: {error.status} {error.reason}{later}",
            hint="the source is overloaded or broken; try again later",
        )
    return StorageError(
        f"Failed to fetch model. {uri}: {error}",
        hint="check the network, the proxy variables and the endpoint; storage.mirrors in "
        "kserve-local.yaml serves it from a local folder",
    )
