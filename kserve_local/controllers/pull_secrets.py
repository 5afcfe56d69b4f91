"""Which registry logins an image is pulled with: a Pod's `imagePullSecrets`, read as kubelet does.

Pure. Copies the rules of Kubernetes' credential provider: Secrets of type
kubernetes.io/dockerconfigjson and kubernetes.io/dockercfg; an entry's key is a registry, with a
path prefix if it has one, and may have `*` in the labels of its host name; the most exact key comes
first.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kserve_local.api.meta import Object
from kserve_local.controllers.environment import secret_value
from kserve_local.interfaces.backend import Login

_HUB = "index.docker.io"


def logins(
    pod: Object, image: str, secret: Callable[[str], Object | None]
) -> tuple[tuple[Login, ...], tuple[str, ...]]:
    """Return the logins to try for an image, in order, and the Secrets that are not there.

    Args:
        secret: Finds a Secret of the Pod's namespace.
    """
    found: dict[str, list[Login]] = {}
    missing: list[str] = []
    for reference in (pod.get("spec") or {}).get("imagePullSecrets") or ():
        name = str(reference.get("name") or "")
        one = secret(name)
        if one is None:
            missing.append(name)
            continue
        for key, login in _entries(one):
            found.setdefault(_registry(key), []).append(login)
    wanted = _full_name(image)
    matching = [key for key in sorted(found, reverse=True) if _covers(key, wanted)]
    tried = [login for key in matching for login in found[key]]
    return tuple(dict.fromkeys(tried)), tuple(missing)


def _entries(secret: Object) -> Iterator[tuple[str, Login]]:
    whole = _json(secret_value(secret, ".dockerconfigjson")).get("auths")
    auths = whole if isinstance(whole, dict) else _json(secret_value(secret, ".dockercfg"))
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


def _json(content: bytes | None) -> Mapping[str, Any]:
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _registry(key: str) -> str:
    """Return `host[:port][/path]` of an entry's key, which may be a URL with the API's version."""
    plain = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    host, _, path = plain.partition("/")
    for version in ("v1", "v2"):
        if path == version or path.startswith(f"{version}/"):
            path = path[len(version) :].lstrip("/")
    return f"{host}/{path}" if path else host


def _full_name(image: str) -> str:
    """Return the image with its registry: Docker Hub's where it names none."""
    first, slash, rest = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return f"{_HUB}/{rest}" if first == "docker.io" else image
    return f"{_HUB}/{image}"


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
