"""What images are built from, and how they are named: by content, so that a name says whether the
image is the one that would be built now.

Reads files; knows no engine. Two kinds: our model servers from the installed
`kserve-local-runtimes`, and a folder of the user's with a Dockerfile in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import ssl
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import IO

from kserve_local import __version__
from kserve_local.backends.environments import EXTRAS
from kserve_local.errors import Missing
from kserve_local.interfaces.backend import Build, Mount

BASE = "python:3.11-slim"
LABEL = "kserve-local.dev/image"
"""On every image built here: the server's name, or the name that a source image has in YAML."""
BUILDER = "kserve-local.dev/builder"
"""On the first stage of a server's image, which is left without a name."""
SOURCE = "kserve-local.dev/context"
"""On an image of the user's: the folder it was built from."""
_REPOSITORY = "kserve-local"
_DISTRIBUTION = "kserve-local-runtimes"
_RECIPE = "Dockerfile"
_BESIDE = (_RECIPE, "image-constraints.txt", "image-install.sh", "pyproject.toml")
_CERTIFICATES = "ca.pem"
_OWN_RECIPE = ".kserve-local.Dockerfile"
_OWN_REQUIREMENTS = ".kserve-local.requirements.txt"
_PLAIN = """\
FROM {base} AS build
LABEL kserve-local.dev/builder=true
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_DEFAULT_TIMEOUT
COPY .kserve-local.requirements.txt ca.pem /src/
RUN if [ ! -s /src/.kserve-local.requirements.txt ]; then \\
        exec python3 -m venv --without-pip /opt/venv; \\
    fi; \\
    python3 -m venv /opt/venv && if [ -s /src/ca.pem ]; then export PIP_CERT=/src/ca.pem; fi \\
    && /opt/venv/bin/pip --disable-pip-version-check install --no-cache-dir --progress-bar off \\
        -r /src/.kserve-local.requirements.txt
FROM {base}
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /app
COPY . .
RUN rm -f ca.pem .kserve-local.requirements.txt .kserve-local.Dockerfile
USER 1000:1000
ENTRYPOINT {command}
"""
_PIP = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT")
_INDEXES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own index of builds for CPUs: PyPI's for Linux brings gigabytes of CUDA."""
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
"""Build arguments that every engine knows, and keeps out of the image's history."""
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
"""What Debian's and Red Hat's tools trust."""
_NEVER = ("__pycache__", ".git", ".venv", ".kserve-local")
_SYSTEM: Mapping[str, str] = {"lgbserver": "libgomp1", "predictiveserver": "libgomp1"}
# A library of NVIDIA's that xgboost asks for and only trains with.
_REMOVED: Mapping[str, str] = {
    "xgbserver": "nvidia-nccl-cu12",
    "predictiveserver": "nvidia-nccl-cu12",
}
_BUILDKIT = re.compile(
    r"^\s*(#\s*syntax\s*=|(RUN|COPY|ADD)\s+--(mount|link|network|security)\b|\S.*<<)", re.M | re.I
)


_SETTLED = 2.0
"""Seconds after which an edit of a file shows in its times."""
_MOST_KNOWN = 50_000
_known: dict[Path, tuple[tuple[int, ...], str]] = {}
"""Digests of files by what would be different had they changed: a Pod's start asks for all."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one image is built.

    Args:
        image: Its name, with a digest of everything below as tag.
        files: Path in the build's context -> the file; what is generated stands in `texts`.
        arguments: Build arguments.
        needs_buildkit: The Dockerfile has what the classic builder does not know.
    """

    image: str
    label: str
    files: Mapping[str, Path]
    texts: Mapping[str, bytes]
    arguments: Mapping[str, str]
    dockerfile: str = _RECIPE
    context: str = ""
    needs_buildkit: bool = False

    @property
    def labels(self) -> dict[str, str]:
        """Labels for the image."""
        return {LABEL: self.label, **({SOURCE: self.context} if self.context else {})}

    def write(self, file: IO[bytes]) -> None:
        """Write the build's context as a tar archive, and go back to where it begins. Blocking."""
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name, path in self.files.items():
                archive.add(path, arcname=name, recursive=False, filter=_plain)
            for name, text in self.texts.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(text), 0o644
                archive.addfile(member, io.BytesIO(text))
        file.seek(0)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Drop what differs between machines and would spoil the engine's cache."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


def runtime(server: str, environ: Mapping[str, str], *, base: str = BASE) -> Recipe:
    """Return how the image of one of our model servers is built. Blocking: reads files.

    Args:
        environ: Where pip's settings are looked up; they reach the build, not the image. Without an
            index among them PyTorch is the build for CPUs.

    Raises:
        Missing: kserve-local-runtimes is not installed, or has no such server.
    """
    if server not in EXTRAS:
        raise Missing(
            f'there is no model server "{server}"', hint=f"those are: {', '.join(EXTRAS)}"
        )
    files = _runtime_files()
    arguments = {
        "BASE": base,
        "SERVER": server,
        "EXTRA": ",".join(EXTRAS[server]),
        "REMOVE": _REMOVED.get(server, ""),
        "SYSTEM": _SYSTEM.get(server, ""),
    }
    digest = _digest(files, arguments)
    network = _network(environ)
    if "torch" in EXTRAS[server] and not any(name in network for name in _INDEXES):
        network["PIP_EXTRA_INDEX_URL"] = _TORCH_INDEX
    return Recipe(
        image=f"{_REPOSITORY}/{server}:{__version__}-{digest}",
        label=server,
        files=files,
        texts={_CERTIFICATES: _certificates(environ)},
        arguments={**arguments, **network},
    )


def _runtime_files() -> dict[str, Path]:
    spec = find_spec("modelserver")
    if spec is None or spec.origin is None:
        raise Missing(f"{_DISTRIBUTION} is not installed", hint=f"pip install {_DISTRIBUTION}")
    root = Path(spec.origin).parents[1]
    files = {name: _beside(root, name) for name in _BESIDE}
    for package in ("modelserver", "podlauncher", *EXTRAS):
        found = _walk(root / package)
        files.update({f"{package}/{name}": path for name, path in found if not path.is_dir()})
    return files


def _beside(root: Path, name: str) -> Path:
    """Return a file of the recipe: beside the packages in a checkout, else where pip put it."""
    if (root / name).is_file():
        return root / name
    for file in metadata.files(_DISTRIBUTION) or ():
        if file.name == name and "share" in file.parts:
            return Path(str(file.locate()))
    raise Missing(f"{name} of {_DISTRIBUTION} is not there; install it again")


def _network(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the build arguments that say where packages come from."""
    return {name: environ[name] for name in (*_PIP, *_PROXIES) if environ.get(name)}


def _certificates(environ: Mapping[str, str]) -> bytes:
    """Return the certificates that this machine trusts: a proxy may have its own. Empty: none."""
    named = (environ.get(name) for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"))
    for place in (*named, *_BUNDLES, ssl.get_default_verify_paths().cafile):
        if place:
            with contextlib.suppress(OSError):
                return Path(place).read_bytes()
    return b""


def source(image: str, build: Build, environ: Mapping[str, str], *, base: str = BASE) -> Recipe:
    """Return how an image of the user's is built from its folder. Blocking: reads every file.

    Args:
        build: With a `context`.
        environ: Where pip's settings are looked up.

    Raises:
        Missing: The folder cannot be read, or neither a Dockerfile nor a command says how to start.
    """
    context = build.context
    assert context is not None  # what this is about
    ignored = _Ignored.of(context)
    files = _without_full_folders(
        {name: path for name, path in _walk(context) if not ignored.covers(name)}
    )
    recipe = context / _RECIPE
    if not recipe.is_file():
        return _without_dockerfile(image, build, files, environ, base)
    text = recipe.read_text(encoding="utf-8", errors="replace")
    files[_RECIPE] = recipe
    return Recipe(
        image=_source_name(image, _digest(files, {})),
        label=image,
        files=files,
        texts={},
        arguments={},
        context=str(context),
        needs_buildkit=_BUILDKIT.search(text) is not None,
    )


def _source_name(image: str, digest: str) -> str:
    name = image.partition("@")[0].rpartition(":")[0] or image
    plain = re.sub(r"[^a-z0-9_.-]+", "-", name.lower()).strip("-.")
    return f"{_REPOSITORY}/source/{plain or 'image'}:{digest}"


def _without_dockerfile(
    image: str, build: Build, files: Mapping[str, Path], environ: Mapping[str, str], base: str
) -> Recipe:
    """Return a recipe for source that brings none: packages first, so that edits keep them."""
    if not build.command:
        raise Missing(
            f'image "{image}": {build.context} has no Dockerfile, and kserve-local.yaml gives no '
            "command",
            hint=f"write a Dockerfile, or images.{image}.command: [python, model.py]",
        )
    requirements = build.requirements
    if requirements is None and build.context is not None:
        beside = build.context / "requirements.txt"
        requirements = beside if beside.is_file() else None
    try:
        wanted = requirements.read_bytes() if requirements is not None else b""
    except OSError as error:
        raise Missing(f"requirements file {requirements}: {error.strerror}") from error
    lines = [*build.packages, *wanted.decode(errors="replace").splitlines()]
    text = _PLAIN.format(base=base, command=json.dumps(list(build.command)))
    own: dict[str, bytes] = {
        _OWN_RECIPE: text.encode(),
        _OWN_REQUIREMENTS: "".join(f"{line}\n" for line in lines).encode(),
    }
    digest = _digest(files, {name: content.decode() for name, content in own.items()})
    return Recipe(
        image=_source_name(image, digest),
        label=image,
        files=files,
        texts={**own, _CERTIFICATES: _certificates(environ)},
        arguments=_network(environ),
        dockerfile=_OWN_RECIPE,
        context=str(build.context),
    )


def live(context: Path, paths: Sequence[str], inside: str) -> tuple[Mount, ...]:
    """Return mounts that show files of a source as they are now, at their place in the image.

    Args:
        inside: The image's working directory, where the context was copied to.
    """
    found = ((context / path, PurePosixPath(inside) / path) for path in paths)
    return tuple(Mount(str(place), path) for path, place in found if path.exists())


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files, links and folders below a folder by their names in it, in order.

    A link is itself, whatever it leads to.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in _NEVER)
        for name in (*folders, *sorted(names)):
            path = Path(place, name)
            if path.is_symlink() or path.is_dir() or path.is_file():
                yield path.relative_to(folder).as_posix(), path


def _without_full_folders(found: Mapping[str, Path]) -> dict[str, Path]:
    """Return what is not made by itself with something that lies in it."""
    full = {str(above) for name in found for above in PurePosixPath(name).parents}
    return {name: path for name, path in found.items() if name not in full}


def _digest(files: Mapping[str, Path], arguments: Mapping[str, str]) -> str:
    """Return twelve digits that change with any name, mode, content or argument."""
    whole = hashlib.sha256(repr(sorted(arguments.items())).encode())
    for name in sorted(files):
        path = files[name]
        if path.is_symlink():
            content, mode = hashlib.sha256(os.readlink(path).encode()).hexdigest(), 0
        elif path.is_dir():
            content, mode = "folder", 0
        else:
            content, mode = _content(path), path.stat().st_mode & 0o111
        whole.update(f"\0{name}\0{mode}\0{content}".encode())
    return whole.hexdigest()[:12]


def _content(path: Path) -> str:
    """Return the digest of a file's content; of one that is as it was the last time, that one."""
    found = path.stat()
    stamp = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)
    known = _known.get(path)
    if known is not None and known[0] == stamp:
        return known[1]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # Written this moment, it may be written again without another time: clocks of files are coarse.
    if time.time() - max(found.st_mtime, found.st_ctime) > _SETTLED:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[path] = (stamp, digest)
    return digest


class _Ignored:
    """A `.dockerignore`: patterns of Go's filepath.Match, `**`, and `!` for exceptions."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = patterns

    @classmethod
    def of(cls, context: Path) -> _Ignored:
        try:
            lines = (context / ".dockerignore").read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        plain = (line.strip() for line in lines)
        return cls([line for line in plain if line and not line.startswith("#")])

    def covers(self, name: str) -> bool:
        found = False
        parts = PurePosixPath(name).parts
        for line in self._patterns:
            pattern = line.removeprefix("!").strip("/")
            # A folder that is ignored takes what is in it along.
            if any(_matches("/".join(parts[:n]), pattern) for n in range(1, len(parts) + 1)):
                found = not line.startswith("!")
        return found


def _matches(name: str, pattern: str) -> bool:
    return _match_parts(name.split("/"), pattern.split("/"))


def _match_parts(names: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_match_parts(names[n:], patterns[1:]) for n in range(len(names) + 1))
    return (
        bool(names) and fnmatchcase(names[0], patterns[0]) and _match_parts(names[1:], patterns[1:])
    )
