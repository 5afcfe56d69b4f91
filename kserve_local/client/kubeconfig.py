"""The project's kubeconfig: written by the supervisor, read by our client, kubectl and the SDKs.

One cluster, user and context called `kserve-local`; CA and token are inline, so the file can be
copied. It holds the token and has mode 0600.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kserve_local.errors import Invalid, ServiceUnavailable

NAME = "kserve-local"


@dataclass(frozen=True, slots=True)
class Access:
    """What a client needs to reach an API server.

    Args:
        server: `https://127.0.0.1:8089`.
        ca: PEM; empty for `http://`.
        namespace: The context's default namespace.
    """

    server: str
    ca: str
    token: str
    namespace: str = "default"


def write(path: Path, access: Access) -> None:
    """Write the kubeconfig whole, mode 0600."""
    ca = base64.b64encode(access.ca.encode()).decode("ascii")
    # JSON is YAML, and every value below is plain ASCII: no YAML library is needed to write it.
    text = f"""\
apiVersion: v1
kind: Config
clusters:
- name: {NAME}
  cluster:
    server: {access.server}
    certificate-authority-data: {ca}
users:
- name: {NAME}
  user:
    token: {access.token}
contexts:
- name: {NAME}
  context:
    cluster: {NAME}
    user: {NAME}
    namespace: {access.namespace}
current-context: {NAME}
"""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


def read(path: Path) -> Access:
    """Return what the current context of a kubeconfig says.

    Raises:
        ServiceUnavailable: There is no such file: nothing runs here.
        Invalid: It cannot be used.
    """
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        raise ServiceUnavailable(
            f"{path}: no such kubeconfig; nothing runs here", hint="kserve-local up -d"
        ) from error
    import yaml

    try:
        content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        context = _named(content["contexts"], content["current-context"])["context"]
        cluster = _named(content["clusters"], context["cluster"])["cluster"]
        user = _named(content["users"], context["user"])["user"]
        return Access(
            server=str(cluster["server"]).rstrip("/"),
            ca=base64.b64decode(cluster.get("certificate-authority-data", "")).decode("ascii"),
            token=str(user.get("token", "")),
            namespace=str(context.get("namespace") or "default"),
        )
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise Invalid(f"{path}: not a kubeconfig that can be used: {error!r}") from error


def _named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(item for item in items if item["name"] == name)
