"""What images are built from, and how they are named: by content, so that a name says whether the
image is the one that would be built now.

Reads files; knows no engine. Two kinds: our model servers from the installed
`kserve-local-runtimes`, and a folder of the user's with a Dockerfile in it.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import ssl
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from kserve_local import __version__
from kserve_local.backends.environments import EXTRAS
from kserve_local.errors import Missing
from kserve_local.interfaces.backend import Mount

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
_PIP = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT")
_NEVER = ("__pycache__", ".git", ".venv", ".kserve-local")
# A library of NVIDIA's that xgboost asks for and only trains with.
_REMOVED: Mapping[str, str] = {
    "xgbserver": "nvidia-nccl-cu12",
    "predictiveserver": "nvidia-nccl-cu12",
}
_BUILDKIT = re.compile(
    r"^\s*(#\s*syntax\s*=|(RUN|COPY|ADD)\s+--(mount|link|network|security)\b|\S.*<<)", re.M | re.I
)


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

    def archive(self) -> bytes:
        """Return the build's context as a tar archive."""
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            for name, path in self.files.items():
                archive.add(path, arcname=name, recursive=False, filter=_plain)
            for name, text in self.texts.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(text), 0o644
                archive.addfile(member, io.BytesIO(text))
        return content.getvalue()


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Drop what differs between machines and would spoil the engine's cache."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


def runtime(server: str, environ: Mapping[str, str], *, base: str = BASE) -> Recipe:
    """Return how the image of one of our model servers is built. Blocking: reads files.

    Args:
        environ: Where pip's settings are looked up; they reach the build, not the image.

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
    }
    digest = _digest(files, arguments)
    pip = {name: environ[name] for name in _PIP if environ.get(name)}
    return Recipe(
        image=f"{_REPOSITORY}/{server}:{__version__}-{digest}",
        label=server,
        files=files,
        texts={_CERTIFICATES: _certificates(environ)},
        arguments={**arguments, **pip},
    )


def _runtime_files() -> dict[str, Path]:
    found = find_spec("modelserver")
    if found is None or found.origin is None:
        raise Missing(f"{_DISTRIBUTION} is not installed", hint=f"pip install {_DISTRIBUTION}")
    root = Path(found.origin).parents[1]
    files = {name: _beside(root, name) for name in _BESIDE}
    for package in ("modelserver", "podlauncher", *EXTRAS):
        files.update({f"{package}/{name}": path for name, path in _walk(root / package)})
    return files


def _beside(root: Path, name: str) -> Path:
    """Return a file of the recipe: beside the packages in a checkout, else where pip put it."""
    if (root / name).is_file():
        return root / name
    for file in metadata.files(_DISTRIBUTION) or ():
        if file.name == name and "share" in file.parts:
            return Path(str(file.locate()))
    raise Missing(f"{name} of {_DISTRIBUTION} is not there; install it again")


def _certificates(environ: Mapping[str, str]) -> bytes:
    """Return the certificates that pip needs where a proxy has its own; empty: none named."""
    for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        if environ.get(name):
            try:
                return Path(environ[name]).read_bytes()
            except OSError:
                continue
    own = ssl.get_default_verify_paths().cafile
    try:
        return Path(own).read_bytes() if own else b""
    except OSError:
        return b""


def source(image: str, context: Path) -> Recipe:
    """Return how an image of the user's is built from its folder. Blocking: reads every file.

    Raises:
        Missing: There is no Dockerfile, or the folder cannot be read.
    """
    recipe = context / _RECIPE
    try:
        text = recipe.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise Missing(
            f'image "{image}": {context} has no Dockerfile ({error.strerror})',
            hint="write one, or run this image as a process (without --backend docker)",
        ) from error
    ignored = _Ignored.of(context)
    files = {name: path for name, path in _walk(context) if not ignored.covers(name)}
    files[_RECIPE] = recipe
    name = re.sub(r"[^a-z0-9_.-]+", "-", image.partition("@")[0].rpartition(":")[0] or image)
    return Recipe(
        image=f"{_REPOSITORY}/source/{name.strip('-.') or 'image'}:{_digest(files, {})}",
        label=image,
        files=files,
        texts={},
        arguments={},
        context=str(context),
        needs_buildkit=_BUILDKIT.search(text) is not None,
    )


def live(context: Path, paths: Sequence[str], inside: str) -> tuple[Mount, ...]:
    """Return mounts that show files of a source as they are now, at their place in the image.

    Args:
        inside: The image's working directory, where the context was copied to.
    """
    found = ((context / path, PurePosixPath(inside) / path) for path in paths)
    return tuple(Mount(str(place), path) for path, place in found if path.exists())


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files below a folder by their names in it, in order."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in _NEVER)
        for name in sorted(names):
            path = Path(place, name)
            if path.is_file() or path.is_symlink():
                yield path.relative_to(folder).as_posix(), path


def _digest(files: Mapping[str, Path], arguments: Mapping[str, str]) -> str:
    """Return twelve digits that change with any name, mode, content or argument."""
    whole = hashlib.sha256(repr(sorted(arguments.items())).encode())
    for name in sorted(files):
        path = files[name]
        if path.is_symlink():
            content, mode = os.readlink(path).encode(), 0
        else:
            content, mode = path.read_bytes(), path.stat().st_mode & 0o111
        whole.update(f"\0{name}\0{mode}\0{hashlib.sha256(content).hexdigest()}".encode())
    return whole.hexdigest()[:12]


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
