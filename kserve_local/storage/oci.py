"""`oci://registry/name[:tag|@digest]`: the layers of a model image, from the registry's HTTP API.

Follows the OCI distribution and image specifications (and Docker's older media types). The layers
are the files that the downloader fetches; what of them is the model, `layers` says. Encrypted HTTP
always, but for registries on this machine or with `KSERVE_OCI_INSECURE_REGISTRY`, as Docker and
KServe have it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kserve_local.errors import NoModel, StorageError
from kserve_local.interfaces.backend import Login
from kserve_local.interfaces.registries import HUB, full_name
from kserve_local.storage.http import (
    TRANSIENT,
    Broken,
    HttpClient,
    Limits,
    Refused,
    Response,
    Stop,
    tls_context,
)
from kserve_local.storage.registry_logins import Authorization, logins_for
from kserve_local.storage.remote import (
    ANONYMOUS,
    Listing,
    RemoteFile,
    fingerprint,
    touch,
    unreachable,
)

FOLDER = "models"
"""The folder of a model image that is the model (control-plane.md 7.4)."""
INSECURE = "KSERVE_OCI_INSECURE_REGISTRY"
_HUB_API = "registry-1.docker.io"
_MAX_MANIFEST = 4 * 1024 * 1024
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_REGISTRY = re.compile(r"([A-Za-z0-9-]+([.][A-Za-z0-9-]+)*|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?")
_REPOSITORY = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_SCHEME = re.compile(r"oci(\+[a-z]+)?://")


def image_of(uri: str) -> str:
    """Return the image that an OCI URI of any mode names, empty for other URIs."""
    match = _SCHEME.match(uri)
    return uri[match.end() :] if match else ""


@dataclass(frozen=True, slots=True)
class Reference:
    """An image's name in parts. `version` is its digest, else its tag."""

    registry: str
    repository: str
    version: str

    @classmethod
    def of(cls, image: str) -> Reference:
        """Return the parts, with Docker's defaults.

        Raises:
            StorageError: It is no image name.
        """
        name, _, digest = full_name(image).partition("@")
        registry, _, rest = name.partition("/")
        repository, colon, tag = rest.partition(":")
        if registry == HUB and "/" not in repository:
            repository = f"library/{repository}"
        version = digest or (tag if colon else "latest")
        right = _DIGEST.fullmatch(version) if digest else _TAG.fullmatch(version)
        named = _REGISTRY.fullmatch(registry) and _REPOSITORY.fullmatch(repository)
        if not right or not named:
            raise StorageError(
                f'Failed to fetch model. "{image}" is no image name.',
                hint="write oci://REGISTRY/NAME:TAG or oci://REGISTRY/NAME@sha256:DIGEST, the name "
                "in small letters",
            )
        return cls(registry, repository, version)


class OciSource:
    """One `oci://` URI.

    Args:
        logins: What the Pod gives to pull it with, tried before the user's own logins.
    """

    def __init__(
        self,
        uri: str,
        env: Mapping[str, str],
        limits: Limits,
        stop: Stop,
        logins: tuple[Login, ...] = (),
    ) -> None:
        self._image = image_of(uri)
        self._reference = Reference.of(self._image)
        self._architecture = _architecture()
        self._insecure = env.get(INSECURE, "").lower() == "true"
        host = urlsplit(f"//{self._reference.registry}").hostname or ""
        self._lenient = self._insecure or _is_loopback(host)
        bundle = Path(env.get("CA_BUNDLE_VOLUME_MOUNT_POINT") or "/nonexistent") / "cabundle.crt"
        tls = None
        if self._lenient or bundle.is_file():
            tls = tls_context(str(bundle) if bundle.is_file() else "", verify=not self._lenient)
        self.http = HttpClient(limits, stop, env, tls)
        self._logins = logins_for(self._image, logins, env)
        self._authorization = Authorization(
            self.http,
            self._logins,
            f"repository:{self._reference.repository}:pull",
            self._is_private,
        )
        self._base = ""

    @property
    def place(self) -> str:
        at = self._reference
        return repr(("oci", at.registry, at.repository, at.version, self._architecture))

    @property
    def endpoint(self) -> str:
        return ""

    @property
    def reader(self) -> str:
        if not self._logins:
            return ANONYMOUS
        return fingerprint(*(f"{login.username}:{login.password}" for login in self._logins))

    def close(self) -> None:
        self.http.close()

    def resolve(self, note: Callable[[str], None]) -> str:
        """Return the digest of the manifest (or index) that the image's tag stands for now.

        Raises:
            StorageError, Broken, Refused: As `listing`.
        """
        return self._read(self._reference.version, note)[0]

    def listing(self, note: Callable[[str], None]) -> Listing:
        manifest = self._read(self._reference.version, note)[1]
        if manifest.get("manifests") is not None:
            manifest = self._read(self._for_this_machine(manifest), note)[1]
        try:
            layers = [(str(e["digest"]), int(e["size"])) for e in manifest["layers"]]
        except (KeyError, TypeError, ValueError) as error:
            raise self._unreadable("its manifest has no layers") from error
        if not all(_DIGEST.fullmatch(digest) and size >= 0 for digest, size in layers):
            raise self._unreadable("a layer has no digest or no size")
        files = tuple(
            RemoteFile(
                path=f"{number:04}-{digest.partition(':')[2][:12]}.layer",
                url=self._url(f"blobs/{digest}"),
                size=size,
                tag=digest,
                digest=digest,
            )
            for number, (digest, size) in enumerate(layers)
        )
        return Listing(files, unpack=True, folder=FOLDER)

    def reach(self, note: Callable[[str], None]) -> None:
        files = self.listing(note).files
        if not files:
            raise empty(self._image)
        touch(self, files[-1], note)

    def open(self, file: RemoteFile, start: int, end: int | None = None) -> Response:
        ranged = {}
        if start or end is not None:
            ranged["Range"] = f"bytes={start}-{'' if end is None else end}"
        return self._get(file.url, ranged, expect=(200, 206))

    def refused(self, error: Refused, file: RemoteFile) -> StorageError:
        return self._words(error)

    def digest(self, file: RemoteFile, response: Response) -> str:
        return file.digest

    # -- manifests --------------------------------------------------------------------------------

    def _read(self, version: str, note: Callable[[str], None]) -> tuple[str, Mapping[str, Any]]:
        """Return a manifest's digest and content."""
        if not self._base:
            self._base = self._find_base()
        url = self._url(f"manifests/{version}")
        accept = {"Accept": ", ".join((*_INDEXES, *_MANIFESTS))}
        try:
            response = self.http.retried(lambda: self._get(url, accept), note)
        except Refused as error:
            if error.status in TRANSIENT:
                raise
            raise self._words(error) from error
        try:
            body = response.read(_MAX_MANIFEST)
        finally:
            response.close()
        kind, _, expected = version.partition(":")
        if expected and hashlib.new(kind, body).hexdigest() != expected:
            raise self._unreadable(f"the registry gives another manifest than {version}")
        try:
            manifest = json.loads(body)
        except ValueError:
            manifest = None
        if not isinstance(manifest, dict):
            raise self._unreadable("its manifest is no JSON object")
        return f"sha256:{hashlib.sha256(body).hexdigest()}", manifest

    def _for_this_machine(self, index: Mapping[str, Any]) -> str:
        """Return the digest of the manifest for Linux on this machine's processor."""
        there = []
        for entry in index["manifests"] or ():
            at = entry.get("platform") or {}
            name = f"{at.get('os') or 'linux'}/{at.get('architecture') or self._architecture}"
            digest = str(entry.get("digest") or "")
            if name == f"linux/{self._architecture}" and _DIGEST.fullmatch(digest):
                return digest
            if at.get("os") != "unknown":  # an attestation
                there.append(name)
        raise StorageError(
            f"Failed to fetch model. Image {self._image} is not there for "
            f"linux/{self._architecture}; it has {', '.join(sorted(set(there))) or 'none'}.",
            hint=f"docker buildx build --platform linux/{self._architecture} ... makes it",
        )

    # -- the registry -----------------------------------------------------------------------------

    def _url(self, what: str) -> str:
        return f"{self._base}/v2/{self._reference.repository}/{what}"

    def _find_base(self) -> str:
        """Return the registry's address: encrypted, else plain where that is allowed."""
        registry = self._reference.registry
        secure = f"https://{_HUB_API if registry == HUB else registry}"
        if not self._lenient:
            return secure
        for base in (secure, f"http://{registry}"):
            try:
                self.http.get(f"{base}/v2/", lambda _: {}).close()
            except Refused:
                return base
            except Broken:
                continue
            else:
                return base
        return secure  # It tells what is wrong when it is asked in earnest.

    def _get(
        self, url: str, headers: Mapping[str, str], *, expect: tuple[int, ...] = (200,)
    ) -> Response:
        while True:
            used = self._authorization.header
            send = {**headers, **({"Authorization": used} if used else {})}
            try:
                # A registry may send on to a storage, which the login is not for.
                response = self.http.get(
                    url,
                    lambda at, send=send: send if _same_host(at, url) else headers,  # type: ignore[misc]  # mypy infers no default argument
                    expect=expect,
                )
            except Refused as error:
                if error.status != 401 or not _same_host(error.url, url):
                    raise
                self._authorization.renew(error, used)
                continue
            self._authorization.took(used)
            return response

    def _is_private(self, url: str) -> bool:
        at = urlsplit(url)
        return at.scheme == "https" or self._insecure or _is_loopback(at.hostname or "")

    # -- words ------------------------------------------------------------------------------------

    def _words(self, error: Refused) -> StorageError:
        if error.status in TRANSIENT:
            return unreachable(f"oci://{self._image}", error)
        registry = self._reference.registry
        if error.status in (401, 403):
            who = (
                f"the logins for {registry} ({', '.join(n.username for n in self._logins)})"
                if self._logins
                else "anonymous access"
            )
            return StorageError(
                f"Failed to fetch model. Image {self._image}: {registry} refuses it "
                f"({error.status} {error.reason}).",
                hint=f"{who} may not read it, or there is no such image. Name a Secret of type "
                f"kubernetes.io/dockerconfigjson in imagePullSecrets, or: docker login {registry}",
            )
        if error.status == 404:
            return StorageError(
                f"Failed to fetch model. Image {self._image} not found: {registry} has no "
                f'"{self._reference.version}" of {self._reference.repository}.',
                hint="check name and tag, or push it; an image that was built on this machine is "
                "found where a Docker engine runs",
            )
        return StorageError(
            f"Failed to fetch model. Image {self._image}: {registry} says {error.status} "
            f"{error.reason}.",
            hint="check the registry's address",
        )

    def _unreadable(self, why: str) -> StorageError:
        return StorageError(
            f"Failed to fetch model. Image {self._image} cannot be read: {why}.",
            hint="push it as an OCI or Docker (schema 2) image",
        )


def empty(image: str) -> NoModel:
    """Return the error for an image without a model."""
    return NoModel(
        f"Failed to fetch model. Image {image} has no folder /{FOLDER}, or nothing is in it.",
        hint=f"put the model there, in its Dockerfile:  COPY model/ /{FOLDER}/",
    )


def _architecture() -> str:
    machine = platform.machine().lower()
    return _ARCHITECTURES.get(machine, machine)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _same_host(a: str, b: str) -> bool:
    return urlsplit(a)[:2] == urlsplit(b)[:2]
