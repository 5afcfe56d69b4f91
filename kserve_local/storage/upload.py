"""Objects that loggers write: to a mirror's folder, to S3, or to Google Cloud Storage. Blocking.

The one way out of this package that writes to a remote store. A mirror of `kserve-local.yaml` that
holds the URI's prefix gets the object as a file; so a project can be tried without a bucket.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from kserve_local.errors import StorageError
from kserve_local.storage.aws_credentials import request_env
from kserve_local.storage.gcs import GcsSource
from kserve_local.storage.google_credentials import WRITE
from kserve_local.storage.http import Broken, Limits, Refused, Stop
from kserve_local.storage.local import mirrored
from kserve_local.storage.s3 import S3Source


def upload(
    uri: str,
    data: bytes,
    *,
    user_env: Mapping[str, str],
    env: Mapping[str, str],
    mirrors: Mapping[str, Path],
    offline: bool,
    limits: Limits | None = None,
) -> str:
    """Write one object; return where it is.

    Args:
        user_env / env: The user's environment, and what the Pod's agent has.
        mirrors: URI prefix -> folder.

    Raises:
        StorageError: It could not be written.
    """
    # A client names its event, and the event its object: it must not choose another place.
    if ".." in uri.split("/"):
        raise StorageError(f'{uri} is not written: ".." in an object\'s name')
    path = mirrored(uri, mirrors)
    if path is not None:
        _write(path, data)
        return str(path)
    hint = f'storage: {{mirrors: {{"{_bucket(uri)}": ./payloads/}}}} keeps it on this machine'
    if offline:
        raise StorageError(f"{uri} is not written: offline", hint=hint)
    bounds = limits or Limits()
    merged = request_env(user_env, env)
    source: S3Source | GcsSource
    if uri.startswith(("s3://", "s3a://")):
        source = S3Source(uri, merged, bounds, Stop())
    elif uri.startswith("gs://"):
        source = GcsSource(uri, merged, bounds, Stop(), scope=WRITE)
    else:
        scheme = uri.partition("://")[0]
        raise StorageError(f"{uri} is not written: nothing here writes {scheme}://", hint=hint)
    try:
        source.put(data, lambda _: None)
    except (Broken, Refused) as error:
        raise StorageError(f"{uri} could not be written: {error}", hint=hint) from error
    finally:
        source.close()
    return uri


def _bucket(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}/"


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise StorageError(f'"{path}" could not be written: {error.strerror}') from error
