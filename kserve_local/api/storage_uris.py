"""Which storageUris KServe takes, and which ClusterStorageContainer carries one out.

Pure. Prefix list, regular expressions and error texts are control-plane.md 7.1 and 7.7
(pkg/controller/v1beta1/inferenceservice/utils/utils.go, pkg/webhook/admission/pod).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

from kserve_local.api.meta import Object, name_of
from kserve_local.errors import Invalid

PREFIXES = (
    "gs://",
    "s3://",
    "pvc://",
    "file://",
    "https://",
    "http://",
    "hdfs://",
    "webhdfs://",
    "oci://",
    "oci+native://",
    "oci+fetch://",
    "hf://",
)
FETCHED = ("file", "gs", "hf", "http", "https", "oci", "pvc", "s3")
"""Schemes that kserve-local itself fetches, besides local paths."""
_AZURE = re.compile(
    r"https://(.+?)\.(blob|file)\.core\.windows\.net/"
    r"|https://(.+?)\.z[0-9]{1,2}\.(blob|file)\.storage\.azure\.net/"
)
_LATER = {
    "hdfs": "HDFS",
    "webhdfs": "WebHDFS",
    "modelscope": "ModelScope",
    "abfs": "Azure Data Lake",
    "wasb": "Azure Blob Storage",
}
_AZURE_BLOB = re.compile(r"https://(.+?).blob.core.windows.net/(.+)")
_SCHEME = re.compile(r"\w+?://")


def check(uri: str, containers: Sequence[Object] = ()) -> None:
    """Accept a storageUri that a storage container matches or that KServe knows.

    Args:
        uri: A component's storageUri.
        containers: All ClusterStorageContainers.

    Raises:
        Invalid: Not supported; the whole text of the controller's event, and a line `Next step:`.
    """
    if matching_container(uri, containers) is not None or not _SCHEME.search(uri):
        return
    if "blob.core.windows.net" in uri:
        if _AZURE_BLOB.search(uri):
            return
    elif uri.startswith(PREFIXES):
        return
    raise Invalid(
        "StorageURI not supported: storageUri, must be one of: "
        f"[{', '.join(PREFIXES)}] or match https://{{}}.blob.core.windows.net/{{}}/{{}} or be an "
        f"absolute or relative local path. StorageUri [{uri}] is not supported\n"
        "Next step: put the model where kserve-local fetches it from: a local path, "
        f"{', '.join(f'{scheme}://' for scheme in FETCHED)}"
    )


def unfetched(uri: str) -> str:
    """Return what a URI names that a cluster fetches and kserve-local does not, empty if none."""
    scheme = uri.partition("://")[0].lower() if "://" in uri else ""
    if _AZURE.match(uri):
        return "Azure Storage"
    if scheme in ("http", "https") and urlsplit(uri).path.endswith(".git"):
        return "a git repository"
    return _LATER.get(scheme, "")


def matching_container(uri: str, containers: Sequence[Object]) -> Object | None:
    """Return the first enabled init-container ClusterStorageContainer that supports the URI."""
    for container in containers:
        if not container.get("disabled") and _is_init(container) and _supports(container, uri):
            return container
    return None


def named_container(name: str, uri: str, containers: Sequence[Object]) -> Object:
    """Return the ClusterStorageContainer that `storageContainerName` forces; no fallback.

    Raises:
        Invalid: Not there, disabled, of the wrong workloadType, or not for this URI.
    """
    found = next((c for c in containers if name_of(c) == name), None)
    if found is None:
        raise Invalid(f'ClusterStorageContainer "{name}" not found')
    if found.get("disabled"):
        raise Invalid(f'ClusterStorageContainer "{name}" is disabled')
    if not _is_init(found):
        kind = (found.get("spec") or {}).get("workloadType")
        raise Invalid(
            f'ClusterStorageContainer "{name}" has workloadType "{kind}"; explicit selection '
            'requires "initContainer"'
        )
    if not _supports(found, uri):
        raise Invalid(f'ClusterStorageContainer "{name}" does not support storageUri "{uri}"')
    return found


def _is_init(container: Object) -> bool:
    kind = (container.get("spec") or {}).get("workloadType")
    return kind in (None, "", "initContainer")


def _supports(container: Object, uri: str) -> bool:
    for supported in (container.get("spec") or {}).get("supportedUriFormats") or ():
        if supported.get("prefix") and uri.startswith(supported["prefix"]):
            return True
        # An expression that does not compile matches nothing here; upstream reports it on use.
        if supported.get("regex") and _search(supported["regex"], uri):
            return True
    return False


def _search(pattern: str, text: str) -> bool:
    # Go's own dialect, in linear time whatever a manifest brings. Imported here because most
    # URIs are decided by a prefix, and `validate` starts without it.
    import re2

    try:
        return re2.search(pattern, text) is not None
    except re2.error:
        return False


def without_secrets(uri: str) -> str:
    """Return the URI as logs may show it: no login, and no query of an http URL (signatures)."""
    if uri.startswith(("oci://", "oci+")):
        return uri  # An `@` is before a digest, which no login is.
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri.partition("://")[0] + "://..."
    netloc = parts.netloc.rpartition("@")[2]
    query = "..." if parts.query and parts.scheme.lower() in ("http", "https") else parts.query
    if netloc == parts.netloc and query == parts.query:
        return uri
    return urlunsplit(parts._replace(netloc=netloc, query=query))
