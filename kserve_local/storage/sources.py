"""From a remote storageUri to its `Source`, and what is said about schemes that have none.

Imported on the first remote fetch: the supervisor starts without it.
"""

from __future__ import annotations

from collections.abc import Mapping

from kserve_local.api.storage_uris import FETCHED, unfetched
from kserve_local.errors import StorageError
from kserve_local.interfaces.backend import Login
from kserve_local.storage.gcs import GcsSource
from kserve_local.storage.http import Limits, Stop
from kserve_local.storage.huggingface import HuggingFaceSource
from kserve_local.storage.oci import OciSource, image_of
from kserve_local.storage.remote import Source
from kserve_local.storage.s3 import S3Source
from kserve_local.storage.web import WebSource


def source_of(
    uri: str,
    env: Mapping[str, str],
    limits: Limits,
    stop: Stop,
    logins: tuple[Login, ...] = (),
) -> Source:
    """Return the source of a remote URI. Blocking: reads credentials.

    Args:
        logins: What an image may be pulled with, before the user's own logins.

    Raises:
        StorageError: No such scheme, a wrong URI, or credentials that cannot be read.
    """
    scheme = uri.partition("://")[0].lower() if "://" in uri else ""
    if unfetched(uri):
        raise _not_there(uri, unfetched(uri))
    if scheme in ("http", "https"):
        return WebSource(uri, env, limits, stop)
    if scheme == "s3":
        return S3Source(uri, env, limits, stop)
    if scheme == "gs":
        return GcsSource(uri, env, limits, stop)
    if scheme == "hf":
        return HuggingFaceSource(uri, env, limits, stop)
    if image_of(uri):
        return OciSource(uri, env, limits, stop, logins)
    raise StorageError(
        f'storageUri "{uri}" has no provider; known schemes: {", ".join(FETCHED)}',
        hint=_mirror(uri),
    )


def _not_there(uri: str, what: str) -> StorageError:
    return StorageError(
        f'storageUri "{uri}": {what} is not there yet; known schemes: {", ".join(FETCHED)}',
        hint=_mirror(uri),
    )


def _mirror(uri: str) -> str:
    prefix = uri.rpartition("/")[0] + "/"
    return (
        "copy the model into a folder and name it in kserve-local.yaml:  "
        f'storage: {{mirrors: {{"{prefix}": ./models/}}}}'
    )
