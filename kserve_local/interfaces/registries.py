"""Image names and registry logins, as Docker and kubelet read them. Pure.

Copies the rules of Kubernetes' credential provider: an entry's key is a registry, with a path
prefix if it has one, and may have `*` in the labels of its host name; the most exact key comes
first.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from kserve_local.interfaces.backend import Login

HUB = "index.docker.io"


def logins_of(auths: Iterable[Mapping[str, Any]], image: str) -> tuple[Login, ...]:
    """Return the logins to try for an image, in order.

    Args:
        auths: What `auths` of a Docker `config.json` (or a `.dockercfg`) holds, of each file.
    """
    found: dict[str, list[Login]] = {}
    for entries in auths:
        for key, login in _entries(entries):
            found.setdefault(_registry(key), []).append(login)
    wanted = full_name(image)
    matching = [key for key in sorted(found, reverse=True) if _covers(key, wanted)]
    return tuple(dict.fromkeys(login for key in matching for login in found[key]))


def pull_policy_of(image: str) -> Literal["Always", "IfNotPresent"]:
    """Return the `imagePullPolicy` that an image has by its name: `latest` is always pulled."""
    tag = image.rpartition("/")[2].partition(":")[2]
    return "Always" if "@" not in image and tag in ("", "latest") else "IfNotPresent"


def full_name(image: str) -> str:
    """Return the image with its registry: Docker Hub's where it names none."""
    first, slash, rest = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return f"{HUB}/{rest}" if first == "docker.io" else image
    return f"{HUB}/{image}"


def _entries(auths: Mapping[str, Any]) -> Iterator[tuple[str, Login]]:
    for key, entry in auths.items():
        if not isinstance(entry, dict):
            continue
        user, password = str(entry.get("username") or ""), str(entry.get("password") or "")
        if entry.get("auth"):
            try:
                plain = base64.b64decode(str(entry["auth"])).decode()
            except (binascii.Error, UnicodeDecodeError):
                continue
            user, _, password = plain.partition(":")
        if user:
            yield str(key), Login(user, password)


def _registry(key: str) -> str:
    """Return `host[:port][/path]` of an entry's key, which may be a URL with the API's version."""
    plain = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    host, _, path = plain.partition("/")
    for version in ("v1", "v2"):
        if path == version or path.startswith(f"{version}/"):
            path = path[len(version) :].lstrip("/")
    return f"{host}/{path}" if path else host


def _covers(key: str, image: str) -> bool:
    pattern, _, prefix = key.partition("/")
    host, _, path = image.partition("/")
    if not path.startswith(prefix):
        return False
    pattern_name, _, pattern_port = pattern.partition(":")
    name, _, port = host.partition(":")
    pattern_labels, labels = pattern_name.split("."), name.split(".")
    return (
        pattern_port == port
        and len(pattern_labels) == len(labels)
        and all(
            fnmatch.fnmatchcase(label, wanted)
            for wanted, label in zip(pattern_labels, labels, strict=True)
        )
    )
