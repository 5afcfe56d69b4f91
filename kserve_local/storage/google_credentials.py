"""Access tokens for Google Cloud Storage from what is on this machine.

Reads the file of `GOOGLE_APPLICATION_CREDENTIALS` (a service account's key or a user's login), else
gcloud's application default credentials, else nothing: anonymous, as KServe's storage initializer
does. Other kinds of credentials are asked of the `gcloud` program. The metadata server of Google's
machines is not asked.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from kserve_local.errors import StorageError
from kserve_local.storage.http import HttpClient, Refused
from kserve_local.storage.remote import ANONYMOUS, fingerprint

READ = "https://www.googleapis.com/auth/devstorage.read_only"
WRITE = "https://www.googleapis.com/auth/devstorage.read_write"
_TOKEN_URI = "https://oauth2.googleapis.com/token"
_LIFETIME = 3600
_EARLY = 60
_MAX_ANSWER = 1024 * 1024


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def assertion(info: Mapping[str, Any], now: float, scope: str = READ) -> str:
    """Return the signed request of a service account for a token (RFC 7523).

    Raises:
        ValueError: The key is no RSA key in PEM.
    """
    header = {"alg": "RS256", "typ": "JWT", "kid": info.get("private_key_id", "")}
    claims = {
        "iss": info["client_email"],
        "scope": scope,
        "aud": info.get("token_uri") or _TOKEN_URI,
        "iat": int(now),
        "exp": int(now) + _LIFETIME,
    }
    text = f"{_b64(json.dumps(header).encode())}.{_b64(json.dumps(claims).encode())}"
    key = load_pem_private_key(str(info["private_key"]).encode(), password=None)
    if not isinstance(key, RSAPrivateKey):
        raise ValueError("no RSA key")
    return f"{text}.{_b64(key.sign(text.encode(), PKCS1v15(), SHA256()))}"


class GoogleToken:
    """The token of one fetch, renewed in time. Thread-safe."""

    def __init__(self, env: Mapping[str, str], http: HttpClient, scope: str = READ) -> None:
        self._scope = scope
        self._env = env
        self._http = http
        self._lock = threading.Lock()
        self._token = ""
        self._until = 0.0
        self._path, self._info = _read(env)

    @property
    def reader(self) -> str:
        """Stands for the identity."""
        if self._info is None:
            return ANONYMOUS
        return fingerprint(json.dumps(self._info, sort_keys=True))

    @property
    def who(self) -> str:
        """The identity in words."""
        if self._info is None:
            return "anonymous access"
        return str(self._info.get("client_email") or f"the login in {self._path}")

    def headers(self, note: Callable[[str], None]) -> dict[str, str]:
        """Return the Authorization header, none for anonymous access.

        Raises:
            StorageError: The credentials give no token.
            Refused, Broken: The token server cannot be reached.
        """
        if self._info is None:
            return {}
        with self._lock:
            if time.monotonic() > self._until:
                self._token, lifetime = self._fresh(self._info, note)
                self._until = time.monotonic() + max(0.0, lifetime - _EARLY)
            return {"Authorization": f"Bearer {self._token}"}

    def _fresh(self, info: Mapping[str, Any], note: Callable[[str], None]) -> tuple[str, float]:
        kind = info.get("type")
        try:
            if kind == "service_account":
                form = {
                    "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
                    "assertion": assertion(info, time.time(), self._scope),
                }
            elif kind == "authorized_user":
                form = {
                    "grant_type": "refresh_token",
                    "client_id": info["client_id"],
                    "client_secret": info["client_secret"],
                    "refresh_token": info["refresh_token"],
                }
            else:
                return self._of_gcloud(str(kind)), _LIFETIME
            uri = str(info.get("token_uri") or _TOKEN_URI)
        except (KeyError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            # Not the error's text: it may quote the key.
            raise StorageError(
                f"{self._path} holds no usable Google credentials ({type(error).__name__})"
            ) from None
        body = urlencode(form).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        try:
            response = self._http.retried(
                lambda: self._http.get(uri, lambda _: headers, body=body, follow=False), note
            )
            with_body = response.read(_MAX_ANSWER)
            response.close()
            data = json.loads(with_body)
            return str(data["access_token"]), float(data.get("expires_in", _LIFETIME))
        except Refused as error:
            raise StorageError(
                f"Failed to fetch model. Google refuses the credentials of {self.who}: "
                f"{error.status} {_reason(error)}",
                hint="gcloud auth application-default login, or a fresh key in the Secret",
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{uri} answers no token") from error

    def _of_gcloud(self, kind: str) -> str:
        program = shutil.which("gcloud", path=self._env.get("PATH"))
        if program is None:
            raise StorageError(
                f'Google credentials of type "{kind}" need the gcloud program.',
                hint="install it, or use the key of a service account",
            )
        command = [program, "auth", "application-default", "print-access-token"]
        try:
            done = subprocess.run(
                command,
                env=dict(self._env),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=30,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StorageError(f"gcloud gives no token: {type(error).__name__}") from None
        token = done.stdout.decode(errors="replace").strip()
        if done.returncode or not token:
            raise StorageError(
                "gcloud gives no token", hint="gcloud auth application-default login"
            )
        return token


def _reason(error: Refused) -> str:
    try:
        data = json.loads(error.body)
        return str(data.get("error_description") or data.get("error") or error.reason)
    except (ValueError, AttributeError):
        return error.reason


def _read(env: Mapping[str, str]) -> tuple[Path | None, dict[str, Any] | None]:
    """Return the credentials file in use and its content, nothing for anonymous access."""
    if env.get("STORAGE_EMULATOR_HOST"):
        return None, None
    named = env.get("GOOGLE_APPLICATION_CREDENTIALS")
    if named:
        path = Path(named)
    else:
        home = Path(env.get("HOME") or Path.home())
        folder = Path(env.get("CLOUDSDK_CONFIG") or home / ".config" / "gcloud")
        path = folder / "application_default_credentials.json"
        if not path.is_file():
            return None, None
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(f"File {path} was not found.") from None
    except (OSError, ValueError) as error:
        raise StorageError(
            f"File {path} is not a valid json file ({type(error).__name__})."
        ) from None
    if not isinstance(info, dict):
        raise StorageError(f"File {path} is not a valid json file (no object).")
    return path, info
