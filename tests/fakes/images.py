"""Container images made of bytes: layers, manifests, and a registry that knows tokens."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

from tests.fakes.file_server import FileServer, WebFile, serve

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"

Entry = bytes | str | tarfile.TarInfo | None
"""A file's content, a symbolic link's target, a member as it is, or None for a folder."""


def layer(entries: Mapping[str, Entry], *, packed: bool = True) -> bytes:
    """Return a layer; members come in the order given."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, entry in entries.items():
            member = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(name)
            content = b""
            if isinstance(entry, bytes):
                content, member.size = entry, len(entry)
            elif isinstance(entry, str):
                member.type, member.linkname = tarfile.SYMTYPE, entry
            elif entry is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), 1, mtime=0) if packed else raw.getvalue()


def hard_link(name: str, target: str) -> tarfile.TarInfo:
    """Return a member that is a hard link."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.LNKTYPE, target
    return member


def model_layer(folder: Path) -> bytes:
    """Return a layer with a folder's files below `/models`."""
    found: dict[str, Entry] = {"models": None}
    for path in sorted(folder.rglob("*")):
        name = f"models/{path.relative_to(folder)}"
        found[name] = path.read_bytes() if path.is_file() else None
    return layer(found)


def digest_of(content: bytes) -> str:
    """Return `sha256:...` of a blob."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass(frozen=True)
class Image:
    """An image of these layers."""

    layers: tuple[bytes, ...]
    architecture: str = "amd64"

    @property
    def config(self) -> bytes:
        """The configuration, without what a model needs none of."""
        plain = [gzip.decompress(b) if b.startswith(b"\x1f\x8b") else b for b in self.layers]
        return json.dumps(
            {
                "architecture": self.architecture,
                "os": "linux",
                "config": {"Cmd": ["true"]},
                "rootfs": {"type": "layers", "diff_ids": [digest_of(p) for p in plain]},
            }
        ).encode()

    @property
    def manifest(self) -> bytes:
        """The manifest."""
        return json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": described(self.config, CONFIG),
                "layers": [
                    described(b, LAYER + ("+gzip" if b.startswith(b"\x1f\x8b") else ""))
                    for b in self.layers
                ],
            }
        ).encode()


def described(content: bytes, kind: str, **more: Any) -> dict[str, Any]:
    """Return a descriptor."""
    return {"mediaType": kind, "digest": digest_of(content), "size": len(content), **more}


def index(*images: Image) -> bytes:
    """Return an index over images of several machines, and an attestation as buildx makes it."""
    entries = [
        described(i.manifest, MANIFEST, platform={"os": "linux", "architecture": i.architecture})
        for i in images
    ]
    unknown = {"os": "unknown", "architecture": "unknown"}
    entries.insert(0, described(b"{}", MANIFEST, platform=unknown))
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()


def push(registry: str, name: str, tag: str, image: Image, *, login: str = "") -> str:
    """Push an image over HTTP to a real registry; return its digest.

    Args:
        login: `user:password`.
    """
    base = f"http://{registry}/v2/{name}"
    basic = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}

    def send(method: str, url: str, body: bytes, kind: str) -> Any:
        headers = {**basic, "Content-Type": kind}
        request = urllib.request.Request(url, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.headers

    for blob in (*image.layers, image.config):
        place = urljoin(base, send("POST", f"{base}/blobs/uploads/", b"", "")["Location"])
        joined = "&" if "?" in place else "?"
        at = f"{place}{joined}digest={digest_of(blob)}"
        send("PUT", at, blob, "application/octet-stream")
    answer = send("PUT", f"{base}/manifests/{tag}", image.manifest, MANIFEST)
    return str(answer["Docker-Content-Digest"])


@dataclass
class _Repository:
    tags: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)


class RegistryServer(FileServer):
    """A registry. With `login` (`user:password`) it wants tokens, or with `basic` the login itself.

    `tokens` counts the tokens that it gave; `expire()` makes all of them worthless. Blobs are sent
    from the name `localhost`, as by a storage that takes no login.
    """

    def __init__(self) -> None:
        super().__init__()
        self.repositories: dict[str, _Repository] = {}
        self.login = ""
        self.basic = False
        self.tokens = 0
        self._valid: set[str] = set()
        self.blobs_seen: list[str] = []

    @property
    def name(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self.port}"

    def expire(self) -> None:
        """Take no token any more that was given so far."""
        self._valid.clear()

    def add(self, name: str, tag: str, *images: Image) -> None:
        """Put an image, or several as an index, under a name."""
        repository = self.repositories.setdefault(name, _Repository())
        for image in images:
            for blob in (*image.layers, image.config):
                repository.blobs[digest_of(blob)] = blob
            repository.tags[digest_of(image.manifest)] = image.manifest
        top = images[0].manifest if len(images) == 1 else index(*images)
        repository.tags[tag] = repository.tags[digest_of(top)] = top

    def answer(self, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        at = urlsplit(path)
        if at.path == "/token":
            return self._token(parse_qs(at.query), headers)
        if at.path.startswith("/storage/"):
            if "authorization" in headers:
                return 400, {}, b"only one auth mechanism allowed"
            _, _, name, digest = at.path.split("/", 3)
            blob = self.repositories[name.replace("|", "/")].blobs[digest]
            return serve(WebFile(blob), headers)
        if not at.path.startswith("/v2/"):
            return 404, {}, b""
        if not self._may(headers):
            realm = f'Bearer realm="{self.url}/token",service="test"'
            return 401, {"WWW-Authenticate": 'Basic realm="x"' if self.basic else realm}, b"{}"
        if at.path == "/v2/":
            return 200, {}, b"{}"
        name, _, rest = at.path.removeprefix("/v2/").partition("/manifests/")
        if rest:
            found = self.repositories.get(name, _Repository()).tags.get(rest)
            kind = str(json.loads(found).get("mediaType")) if found else ""
            return (200, {"Content-Type": kind}, found) if found else (404, {}, b"{}")
        name, _, digest = at.path.removeprefix("/v2/").partition("/blobs/")
        self.blobs_seen.append(digest)
        if digest not in self.repositories.get(name, _Repository()).blobs:
            return 404, {}, b"{}"
        escaped = name.replace("/", "|")
        place = f"http://localhost:{self.port}/storage/{escaped}/{digest}"
        return 307, {"Location": place}, b""

    def _may(self, headers: dict[str, str]) -> bool:
        if not self.login:
            return True
        sent = headers.get("authorization", "")
        if self.basic:
            return sent == self._expected
        return sent.removeprefix("Bearer ") in self._valid

    @property
    def _expected(self) -> str:
        return f"Basic {base64.b64encode(self.login.encode()).decode()}"

    def _token(
        self, query: dict[str, list[str]], headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        self.tokens += 1
        if query.get("service") != ["test"] or not query["scope"][0].endswith(":pull"):
            return 400, {}, b"{}"
        if headers.get("authorization") != self._expected:
            # As Docker Hub: anybody gets a token, which opens nothing private.
            return (401 if "authorization" in headers else 200), {}, b'{"token": "nobody"}'
        token = f"t{self.tokens}"
        self._valid.add(token)
        return 200, {}, json.dumps({"token": token}).encode()
