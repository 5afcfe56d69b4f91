"""From a remote storageUri to its `Source`, and what is said about schemes that have none.

Imported on the first remote fetch: the supervisor starts without it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from kserve_local.api.storage_uris import FETCHED
from kserve_local.errors import StorageError
from kserve_local.storage.gcs import GcsSource
from kserve_local.storage.http import Limits, Stop
from kserve_local.storage.huggingface import HuggingFaceSource
from kserve_local.storage.remote import Source
from kserve_local.storage.s3 import S3Source
from kserve_local.storage.web import WebSource

_AZURE = re.compile(
    r"https://(.+?)\.(blob|file)\.core\.windows\.net/"
    r"|https://(.+?)\.z[0-9]{1,2}\.(blob|file)\.storage\.azure\.net/"
)
_LATER = {
    "hdfs": "HDFS",
    "webhdfs": "WebHDFS",
    "oci": "an OCI image",
    "oci+fetch": "an OCI image",
    "oci+native": "an OCI image",
    "modelscope": "ModelScope",
    "abfs": "Azure Data Lake",
    "wasb": "Azure Blob Storage",
}


def source_of(uri: str, env: Mapping[str, str], limits: Limits, stop: Stop) -> Source:
    """Return the source of a remote URI. Blocking: reads credentials.

    Raises:
        StorageError: No such scheme, a wrong URI, or credentials that cannot be read.
    """
    scheme = uri.partition("://")[0].lower() if "://" in uri else ""
    if _AZURE.match(uri):
        raise _not_there(uri, "Azure Storage")
    if scheme in ("http", "https"):
        if urlsplit(uri).path.endswith(".git"):
            raise _not_there(uri, "a git repository")
        return WebSource(uri, env, limits, stop)
    if scheme == "s3":
        return S3Source(uri, env, limits, stop)
    if scheme == "gs":
        return GcsSource(uri, env, limits, stop)
    if scheme == "hf":
        return HuggingFaceSource(uri, env, limits, stop)
    if scheme in _LATER:
        raise _not_there(uri, _LATER[scheme])
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
