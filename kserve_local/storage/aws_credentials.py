"""AWS settings of one fetch: from the environment KServe gives, else the user's profile.

Reads the variables of KServe's init container (control-plane.md 7.6), `AWS_PROFILE` and the files
`~/.aws/config` and `~/.aws/credentials`. Keys of a profile that come from a command or a login
(`credential_process`, SSO, roles) are asked of that command or of the `aws` program. Instance and
container roles of AWS machines are not asked for.
"""

from __future__ import annotations

import configparser
import json
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kserve_local.errors import StorageError
from kserve_local.storage.sigv4 import AwsKeys

_PROCESS_TIMEOUT = 30.0
_LEGACY_ENDPOINT = "https://s3.amazonaws.com"


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How to reach S3. `keys` is None for anonymous requests.

    Args:
        endpoint: Without trailing slash; empty for Amazon's own.
        virtual: The bucket is part of the host name.
        found: Whether credentials were looked for and none found (rather than declined).
    """

    endpoint: str
    region: str
    virtual: bool
    verify: bool
    ca_bundle: str
    keys: AwsKeys | None
    found: bool = True
    accelerate: bool = False


def request_env(user: Mapping[str, str], request: Mapping[str, str]) -> dict[str, str]:
    """Return both environments, the request's over the user's, without mixing two identities."""
    merged = {**user, **request}
    if "AWS_ACCESS_KEY_ID" in request or request.get("awsAnonymousCredential"):
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE"):
            if name not in request:
                merged.pop(name, None)
    if "AWS_ENDPOINT_URL" in request and "AWS_ENDPOINT_URL_S3" not in request:
        merged.pop("AWS_ENDPOINT_URL_S3", None)
    return merged


def s3_settings(env: Mapping[str, str]) -> S3Settings:
    """Return the settings that an environment stands for.

    Raises:
        StorageError: A profile that does not exist or gives no keys.
    """

    def true(name: str) -> bool:
        return env.get(name, "").strip().lower() in ("true", "1")

    profile = _profile(env)
    endpoint = (
        env.get("AWS_ENDPOINT_URL_S3")
        or env.get("AWS_ENDPOINT_URL")
        or _from_host(env)
        or profile.get("endpoint_url", "")
    ).rstrip("/")
    region = (
        env.get("AWS_REGION")
        or env.get("AWS_DEFAULT_REGION")
        or profile.get("region")
        or "us-east-1"
    )
    anonymous = true("awsAnonymousCredential")
    keys = None if anonymous else _keys(env, profile)
    virtual = true("S3_USER_VIRTUAL_BUCKET") or not endpoint
    if endpoint == _LEGACY_ENDPOINT:
        endpoint, virtual = "", True
    return S3Settings(
        endpoint=endpoint,
        region=region,
        virtual=virtual,
        verify=env.get("S3_VERIFY_SSL", "").lower() not in ("0", "false"),
        ca_bundle=env.get("AWS_CA_BUNDLE", ""),
        keys=keys,
        found=keys is not None or anonymous,
        accelerate=true("S3_USE_ACCELERATE"),
    )


def _from_host(env: Mapping[str, str]) -> str:
    host = env.get("S3_ENDPOINT", "")
    if not host or "://" in host:
        return host
    scheme = "http" if env.get("S3_USE_HTTPS", "1").lower() in ("0", "false") else "https"
    return f"{scheme}://{host}"


def _keys(env: Mapping[str, str], profile: Mapping[str, str]) -> AwsKeys | None:
    key, secret = env.get("AWS_ACCESS_KEY_ID", ""), env.get("AWS_SECRET_ACCESS_KEY", "")
    if key and secret:
        return AwsKeys(key.strip(), secret.strip(), env.get("AWS_SESSION_TOKEN", "").strip())
    key = profile.get("aws_access_key_id", "")
    secret = profile.get("aws_secret_access_key", "")
    if key and secret:
        return AwsKeys(key, secret, profile.get("aws_session_token", ""))
    name = env.get("AWS_PROFILE") or "default"
    if profile.get("credential_process"):
        return _of_process(shlex.split(profile["credential_process"]), env, name)
    if any(part.startswith(("sso_", "role_arn", "source_profile")) for part in profile):
        program = shutil.which("aws", path=env.get("PATH"))
        if program is None:
            raise StorageError(
                f'The AWS profile "{name}" gets its keys by a login or a role, which needs the '
                "aws program.",
                hint="install it, or set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
                "AWS_SESSION_TOKEN",
            )
        command = [program, "configure", "export-credentials", "--profile", name]
        return _of_process([*command, "--format", "process"], env, name)
    return None


def _of_process(command: Sequence[str], env: Mapping[str, str], name: str) -> AwsKeys:
    try:
        done = subprocess.run(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROCESS_TIMEOUT,
            check=False,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise StorageError(
                f'The AWS profile "{name}" gives no keys: {said[-1] if said else "no output"}',
                hint=f"aws sso login --profile {name}",
            )
        data = json.loads(done.stdout)
        return AwsKeys(
            str(data["AccessKeyId"]),
            str(data["SecretAccessKey"]),
            str(data.get("SessionToken") or ""),
        )
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        # No part of the output: it may hold the keys.
        raise StorageError(
            f'The AWS profile "{name}" gives no keys: {type(error).__name__} of {command[0]}'
        ) from None


def _profile(env: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of the profile in use; of a missing default profile, none."""
    name = env.get("AWS_PROFILE") or "default"
    home = Path(env.get("HOME") or Path.home()) / ".aws"
    config = Path(env.get("AWS_CONFIG_FILE") or home / "config").expanduser()
    shared = Path(env.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials").expanduser()
    found: dict[str, str] = {}
    known = False
    for path, sections in ((config, (f"profile {name}", name)), (shared, (name,))):
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            first = str(error).splitlines()[0]
            raise StorageError(f"{path} cannot be read: {first}") from None
        for section in sections:
            if parser.has_section(section):
                known = True
                found |= dict(parser.items(section))
                break
    if not known and env.get("AWS_PROFILE"):
        raise StorageError(
            f"The config profile ({name}) could not be found",
            hint=f"looked in {config} and {shared}; storage.s3.profile or AWS_PROFILE names it",
        )
    return found
