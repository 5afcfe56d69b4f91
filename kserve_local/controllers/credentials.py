"""Storage credentials for the storage initializer, as KServe's pod webhook builds them. Pure.

Reads the Pod's service account, its Secrets and the `credentials` key of the ConfigMap; gives
environment entries, volumes and mounts of the init container. Secret values stay references
(`secretKeyRef`); only settings that KServe itself writes in plain are plain. Source: KServe v0.20
pkg/credentials (control-plane.md 7.5, 7.6).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from kserve_local.api import names
from kserve_local.api.config import CredentialsConfig
from kserve_local.api.meta import Object, annotations_of, name_of
from kserve_local.controllers.environment import secret_keys, secret_value
from kserve_local.errors import Forbidden, Invalid

SCHEME_PLACEHOLDER = "<scheme-placeholder>"
_STORAGE_SPEC_TYPES = ("s3", "hdfs", "webhdfs")
_GCS_VOLUME = "user-gcp-sa"
_GCS_MOUNT = "/var/secrets/"
_HDFS_VOLUME = "hdfs-secrets"
_HDFS_MOUNT = "/var/secrets/kserve-hdfscreds"
_AZURE_MARKERS = ("AZ_CLIENT_ID", "AZURE_CLIENT_ID", "AZURE_ACCESS_TOKEN")
_AZURE = {
    "AZ_CLIENT_ID": "AZURE_CLIENT_ID",
    "AZ_CLIENT_SECRET": "AZURE_CLIENT_SECRET",
    "AZ_SUBSCRIPTION_ID": "AZURE_SUBSCRIPTION_ID",
    "AZ_TENANT_ID": "AZURE_TENANT_ID",
}
_IAM_ROLE = "eks.amazonaws.com/role-arn"
# Variable (and Secret data key) -> annotation suffix, field of the ConfigMap.
_S3_SETTINGS = {
    "AWS_DEFAULT_REGION": ("s3-region", "s3Region"),
    "S3_VERIFY_SSL": ("s3-verifyssl", "s3VerifySSL"),
    "S3_USER_VIRTUAL_BUCKET": ("s3-usevirtualbucket", "s3UseVirtualBucket"),
    "S3_USE_ACCELERATE": ("s3-useaccelerate", "s3UseAccelerate"),
    "awsAnonymousCredential": ("s3-useanoncredential", "s3UseAnonymousCredential"),
    "AWS_CA_BUNDLE": ("s3-cabundle", "s3CABundle"),
    "AWS_CA_BUNDLE_CONFIGMAP": ("s3-cabundle-configmap", "s3CABundleConfigMap"),
}
_STORAGE_JSON = {
    "endpoint_url": "AWS_ENDPOINT_URL",
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "region": "AWS_DEFAULT_REGION",
    "ca_bundle": "AWS_CA_BUNDLE",
    "verify_ssl": "S3_VERIFY_SSL",
    "anonymous": "awsAnonymousCredential",
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the init container gets beside its source and target."""

    env: tuple[dict[str, Any], ...] = ()
    volumes: tuple[dict[str, Any], ...] = ()
    mounts: tuple[dict[str, Any], ...] = ()

    def plus(self, other: Credentials) -> Credentials:
        """Return both together; the later one wins for a variable or volume of the same name."""
        return Credentials(
            env=_merged(self.env, other.env, "name"),
            volumes=_merged(self.volumes, other.volumes, "name"),
            mounts=_merged(self.mounts, other.mounts, "mountPath"),
        )


@dataclass(frozen=True, slots=True)
class StorageSpec:
    """`storage:` of the InferenceService as its annotations carry it to the Pod."""

    key: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)


def _merged(
    first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], key: str
) -> tuple[dict[str, Any], ...]:
    return tuple({str(item[key]): item for item in (*first, *second)}.values())


def _from_secret(variable: str, secret: Object, key: str) -> dict[str, Any]:
    return {
        "name": variable,
        "valueFrom": {"secretKeyRef": {"name": name_of(secret), "key": key}},
    }


def _plain(variable: str, value: str) -> dict[str, Any]:
    return {"name": variable, "value": value}


def _text(secret: Object | None, key: str) -> str:
    value = secret_value(secret, key) if secret is not None else None
    return value.decode(errors="replace").strip() if value is not None else ""


def s3_settings(
    holder: Object, config: CredentialsConfig, *, secret: Object | None = None
) -> tuple[dict[str, Any], ...]:
    """Return the S3 variables: from the holder's annotations, else Secret data, else the config.

    Args:
        holder: The Secret, or a ServiceAccount with an IAM role.
        secret: Where data keys are looked up; None for a ServiceAccount.
    """
    annotations = annotations_of(holder)

    def setting(annotation: str, data: str, configured: str) -> str:
        return (
            annotations.get(f"{names.KSERVE_GROUP}/{annotation}", "")
            or _text(secret, data)
            or str(config.s3.get(configured, ""))
        )

    env: list[dict[str, Any]] = []
    endpoint = setting("s3-endpoint", "S3_ENDPOINT", "s3Endpoint")
    use_https = setting("s3-usehttps", "S3_USE_HTTPS", "s3UseHttps")
    if endpoint:
        scheme = urlsplit(endpoint).scheme
        host = endpoint
        if scheme in ("http", "https"):
            use_https = "1" if scheme == "https" else "0"
            host = endpoint.partition("://")[2]
        if use_https:
            env.append(_plain("S3_USE_HTTPS", use_https))
        prefix = "http" if use_https == "0" else "https"
        env.append(_plain("S3_ENDPOINT", host))
        env.append(_plain("AWS_ENDPOINT_URL", f"{prefix}://{host}"))
    elif use_https:
        env.append(_plain("S3_USE_HTTPS", use_https))
    for variable, (annotation, configured) in _S3_SETTINGS.items():
        value = setting(annotation, variable, configured)
        if value:
            env.append(_plain(variable, value))
    return tuple(env)


def from_secret(secret: Object, config: CredentialsConfig) -> Credentials:
    """Return what one Secret gives; the first key that KServe knows decides what it is."""
    keys = set(secret_keys(secret))
    name = name_of(secret)
    if config.s3_secret_access_key_name in keys:
        return Credentials(
            env=(
                _from_secret("AWS_ACCESS_KEY_ID", secret, config.s3_access_key_id_name),
                _from_secret("AWS_SECRET_ACCESS_KEY", secret, config.s3_secret_access_key_name),
                *s3_settings(secret, config, secret=secret),
            )
        )
    if config.gcs_credential_file in keys:
        return Credentials(
            env=(
                _plain("GOOGLE_APPLICATION_CREDENTIALS", _GCS_MOUNT + config.gcs_credential_file),
            ),
            volumes=({"name": _GCS_VOLUME, "secret": {"secretName": name}},),
            mounts=({"name": _GCS_VOLUME, "mountPath": _GCS_MOUNT, "readOnly": True},),
        )
    if keys & set(_AZURE_MARKERS):
        return Credentials(
            env=tuple(
                _from_secret(_AZURE.get(key, key), secret, key)
                for key in sorted(keys)
                if key.startswith(("AZ_", "AZURE_"))
            )
        )
    if "AZURE_STORAGE_ACCESS_KEY" in keys:
        key = "AZURE_STORAGE_ACCESS_KEY"
        return Credentials(env=(_from_secret(key, secret, key),))
    if "https-host" in keys:
        host = _text(secret, "https-host")
        return Credentials(env=(_from_secret(f"{host}-headers", secret, "headers"),))
    if "HDFS_NAMENODE" in keys:
        return Credentials(
            volumes=({"name": _HDFS_VOLUME, "secret": {"secretName": name}},),
            mounts=({"name": _HDFS_VOLUME, "mountPath": _HDFS_MOUNT, "readOnly": True},),
        )
    for key in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        if key in keys:
            return Credentials(env=(_from_secret(key, secret, key),))
    return Credentials()


def from_service_account(
    account: Object | None,
    secrets: Mapping[str, Object],
    config: CredentialsConfig,
    *,
    only_secret: str = "",
) -> Credentials:
    """Return the credentials of a Pod's service account.

    Args:
        account: None when it does not exist, which KServe ignores.
        secrets: The namespace's Secrets by name.
        only_secret: Annotation `serving.kserve.io/storageSecretName`: this Secret and no other.

    Raises:
        Forbidden: A listed Secret does not exist (the pod webhook refuses the Pod).
    """
    if only_secret:
        listed = [only_secret]
    elif account is not None:
        listed = [str(ref.get("name") or "") for ref in account.get("secrets") or ()]
    else:
        return Credentials()
    found = Credentials()
    if account is not None and annotations_of(account).get(_IAM_ROLE) and not only_secret:
        found = Credentials(env=s3_settings(account, config))
    for name in listed:
        secret = secrets.get(name)
        if secret is None:
            raise Forbidden(f'Secret "{name}" not found')
        found = found.plus(from_secret(secret, config))
    return found


def from_storage_spec(
    spec: StorageSpec,
    source: str,
    secrets: Mapping[str, Object],
    config: CredentialsConfig,
    *,
    secret_name: str = "",
) -> tuple[str, Credentials]:
    """Return the final source URI and the environment for a `storage:` block.

    Args:
        source: `<scheme-placeholder>://<path>`.
        secret_name: Annotation `serving.kserve.io/storageSecretName`, else the config's name.

    Raises:
        Invalid: In KServe's words (control-plane.md 7.5).
    """
    name = secret_name or config.storage_spec_secret
    secret = secrets.get(name)
    data: dict[str, Any] = {}
    env: list[dict[str, Any]] = []
    if secret is None and spec.key:
        raise Invalid(f'can\'t read storage secret {name}: secrets "{name}" not found')
    if secret is not None:
        key = _entry_key(spec, secret, name)
        if key:
            data = _json_entry(secret, key, name)
            env.append(_from_secret("STORAGE_CONFIG", secret, key))
    kind = str(spec.parameters.get("type") or "")
    if not kind and data:
        kind = str(data.get("type") or "")
        if kind and kind not in _STORAGE_SPEC_TYPES:
            raise Invalid(
                f"storage type must be one of [{', '.join(_STORAGE_SPEC_TYPES)}]. storage type "
                f"[{kind}] is not supported"
            )
    if not kind:
        raise Invalid("unable to determine storage type")
    path = source.removeprefix(f"{SCHEME_PLACEHOLDER}://")
    if kind == "s3":
        bucket = str(spec.parameters.get("bucket") or data.get("bucket") or "")
        if not bucket:
            raise Invalid(
                f"format [{kind}] requires a bucket but one wasn't found in storage data or "
                "parameters"
            )
        uri = f"s3://{bucket}/{path.lstrip('/')}"
    else:
        uri = f"{kind}://{path}"
    if spec.parameters:
        env.append(_plain("STORAGE_OVERRIDE_CONFIG", json.dumps(dict(spec.parameters))))
    return uri, Credentials(env=tuple(env))


def _entry_key(spec: StorageSpec, secret: Object, name: str) -> str:
    keys = secret_keys(secret)
    if spec.key:
        if spec.key not in keys:
            raise Invalid(f"specified storage key {spec.key} not found in storage secret {name}")
        return spec.key
    kind = spec.parameters.get("type")
    wanted = [f"default_{kind}"] if kind else []
    return next((key for key in (*wanted, "default") if key in keys), "")


def _json_entry(secret: Object, key: str, name: str) -> dict[str, Any]:
    try:
        data = json.loads(secret_value(secret, key) or b"")
    except ValueError as error:
        # The decoder's message shows no content, only positions.
        raise Invalid(
            f"invalid json encountered in key {key} of storage secret {name}: {error}"
        ) from None
    if not isinstance(data, dict):
        raise Invalid(
            f"invalid json encountered in key {key} of storage secret {name}: no JSON object"
        )
    return data


def storage_config_env(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with STORAGE_CONFIG and its override turned into AWS variables.

    What KServe's storage initializer does first thing; variables that are set already stay.
    """
    merged: dict[str, Any] = {}
    for variable in ("STORAGE_CONFIG", "STORAGE_OVERRIDE_CONFIG"):
        try:
            part = json.loads(env.get(variable) or "{}")
        except ValueError:
            continue
        if isinstance(part, dict):
            merged |= part
    found = {k: v for k, v in env.items() if k not in ("STORAGE_CONFIG", "STORAGE_OVERRIDE_CONFIG")}
    for key, variable in _STORAGE_JSON.items():
        value = merged.get(key)
        if value not in (None, ""):
            found.setdefault(variable, value if isinstance(value, str) else json.dumps(value))
    endpoint = str(merged.get("endpoint_url") or "")
    if endpoint and "://" in endpoint:
        found.setdefault("S3_USE_HTTPS", "1" if endpoint.startswith("https://") else "0")
        found.setdefault("S3_ENDPOINT", endpoint.partition("://")[2])
    return found
