"""Who asks a registry: the logins for an image, and the tokens that the registry gives for them.

Reads the user's Docker configuration (`auths`, and the helpers of `credHelpers` and `credsStore`)
and the one that KServe mounts for `oci+fetch://`. Copies the distribution specification's token
authentication: a 401 names the scheme, and for `Bearer` the place where a token is had.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from kserve_local.interfaces.backend import Login
from kserve_local.interfaces.registries import HUB, full_name, logins_of
from kserve_local.storage.http import HttpClient, Refused

MOUNTED_CONFIG = "KSERVE_OCI_DOCKER_CONFIG"
_PARAMETER = re.compile(r'([A-Za-z_]+)="([^"]*)"')
_MAX_TOKEN = 1024 * 1024
_HELPER_PATIENCE = 10.0


def logins_for(image: str, given: tuple[Login, ...], env: Mapping[str, str]) -> tuple[Login, ...]:
    """Return the logins to try for an image: those of the Pod, then the user's own. Blocking."""
    mounted = _config(Path(env[MOUNTED_CONFIG])) if env.get(MOUNTED_CONFIG) else {}
    folder = env.get("DOCKER_CONFIG") or Path(env.get("HOME") or Path.home()) / ".docker"
    own = _config(Path(folder) / "config.json")
    found = [*given]
    for config in (mounted, own):
        found += logins_of([_table(config, "auths")], image)
    found += _helped(own, image, env)
    return tuple(dict.fromkeys(found))


def _config(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _table(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _helped(config: Mapping[str, Any], image: str, env: Mapping[str, str]) -> list[Login]:
    """Return the login that a credential helper of the user's has for an image's registry."""
    registry = full_name(image).partition("/")[0]
    helper = str(_table(config, "credHelpers").get(registry) or config.get("credsStore") or "")
    if not helper or "/" in helper:
        return []
    address = f"https://{HUB}/v1/" if registry == HUB else registry
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError):
        answer = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=address.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**env},
            timeout=_HELPER_PATIENCE,
            check=True,
        )
        found = json.loads(answer.stdout)
        if found["Username"] not in ("", "<token>"):
            return [Login(str(found["Username"]), str(found["Secret"]))]
    return []


class Authorization:
    """The `Authorization` header for one registry. Thread-safe.

    Args:
        scope: What is asked for where the registry does not say: `repository:NAME:pull`.
        private: Whether a password may be sent to a URL.
    """

    def __init__(
        self,
        http: HttpClient,
        logins: tuple[Login, ...],
        scope: str,
        private: Callable[[str], bool],
    ) -> None:
        self._http = http
        self._scope = scope
        self._private = private
        # As kubelet: without any login, and only then, nobody in particular asks.
        self._candidates: tuple[Login | None, ...] = logins or (None,)
        self._at = 0
        self._header = ""
        self._worked = False
        self._lock = threading.Lock()

    @property
    def header(self) -> str:
        """What to send; empty as long as the registry did not ask."""
        return self._header

    def took(self, header: str) -> None:
        """Note that the registry answered to a header: when it expires, the next is as good."""
        if header == self._header:
            self._worked = True

    def renew(self, error: Refused, used: str) -> None:
        """Get another header after a 401.

        Args:
            used: The header of that request.

        Raises:
            Refused: Nobody who could ask is left.
            Broken: The place for tokens cannot be reached.
        """
        with self._lock:
            if self._header != used:
                return  # Another thread was here.
            if used and not self._worked:
                self._at += 1
            while self._at < len(self._candidates):
                header = self._answer(error, self._candidates[self._at])
                if header:
                    self._header, self._worked = header, False
                    return
                self._at += 1
            raise error

    def _answer(self, error: Refused, login: Login | None) -> str:
        """Return the header for a login, empty if the registry takes none."""
        scheme, _, rest = error.headers.get("www-authenticate").partition(" ")
        basic = _basic(login)
        if scheme.lower() == "basic":
            return basic if self._private(error.url) else ""
        if scheme.lower() != "bearer":
            return ""
        parameters = {name.lower(): value for name, value in _PARAMETER.findall(rest)}
        realm = parameters.get("realm", "")
        if urlsplit(realm).scheme not in ("http", "https"):
            return ""
        asked = {"scope": parameters.get("scope") or self._scope}
        if parameters.get("service"):
            asked["service"] = parameters["service"]
        url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(asked)}"
        headers = {"Authorization": basic} if basic and self._private(url) else {}
        try:
            # A redirect elsewhere does not get the password.
            response = self._http.get(url, lambda at: headers if at == url else {})
        except Refused as refused:
            if refused.status in (400, 401, 403):
                return ""
            raise
        try:
            found = json.loads(response.read(_MAX_TOKEN))
            token = str(found.get("token") or found.get("access_token") or "")
        except (ValueError, AttributeError):
            token = ""
        finally:
            response.close()
        return f"Bearer {token}" if token.isprintable() and token else ""


def _basic(login: Login | None) -> str:
    if login is None:
        return ""
    plain = f"{login.username}:{login.password}".encode()
    return f"Basic {base64.b64encode(plain).decode()}"
