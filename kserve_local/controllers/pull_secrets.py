"""Which registry logins an image is pulled with: a Pod's `imagePullSecrets`, read as kubelet does.

Pure. Reads Secrets of type kubernetes.io/dockerconfigjson and kubernetes.io/dockercfg; which login
is for which image is said in `interfaces.registries`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from kserve_local.api.meta import Object
from kserve_local.controllers.environment import secret_value
from kserve_local.interfaces.backend import Login
from kserve_local.interfaces.registries import logins_of


def logins(
    pod: Object, image: str, secret: Callable[[str], Object | None]
) -> tuple[tuple[Login, ...], tuple[str, ...]]:
    """Return the logins to try for an image, in order, and the Secrets that are not there.

    Args:
        secret: Finds a Secret of the Pod's namespace.
    """
    found: list[Mapping[str, Any]] = []
    missing: list[str] = []
    for reference in (pod.get("spec") or {}).get("imagePullSecrets") or ():
        name = str(reference.get("name") or "")
        one = secret(name)
        if one is None:
            missing.append(name)
        else:
            found.append(_auths(one))
    return logins_of(found, image), tuple(missing)


def _auths(secret: Object) -> Mapping[str, Any]:
    whole = _json(secret_value(secret, ".dockerconfigjson")).get("auths")
    return whole if isinstance(whole, dict) else _json(secret_value(secret, ".dockercfg"))


def _json(content: bytes | None) -> Mapping[str, Any]:
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
