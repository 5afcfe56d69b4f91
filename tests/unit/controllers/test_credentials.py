"""Storage credentials out of service accounts and Secrets, as KServe builds them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from kserve_local.api.config import CredentialsConfig
from kserve_local.api.meta import Object
from kserve_local.controllers.credentials import (
    Credentials,
    StorageSpec,
    from_secret,
    from_service_account,
    from_storage_spec,
    storage_config_env,
)
from kserve_local.errors import Forbidden, Invalid

CONFIG = CredentialsConfig(
    s3_access_key_id_name="AWS_ACCESS_KEY_ID", s3_secret_access_key_name="AWS_SECRET_ACCESS_KEY"
)


def secret(name: str = "creds", annotations: Any = None, **data: str) -> Object:
    encoded = {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}
    return {"metadata": {"name": name, "annotations": annotations or {}}, "data": encoded}


def values(found: Credentials) -> dict[str, Any]:
    """Return plain values, and `secret/key` for references."""
    result = {}
    for entry in found.env:
        reference = (entry.get("valueFrom") or {}).get("secretKeyRef")
        result[entry["name"]] = (
            f"{reference['name']}/{reference['key']}" if reference else entry["value"]
        )
    return result


def test_s3_keys_stay_references_and_settings_come_from_annotations() -> None:
    annotations = {
        "serving.kserve.io/s3-endpoint": "http://minio:9000",
        "serving.kserve.io/s3-region": "eu-west-1",
        "serving.kserve.io/s3-verifyssl": "0",
    }
    found = from_secret(
        secret(annotations=annotations, AWS_ACCESS_KEY_ID="id", AWS_SECRET_ACCESS_KEY="key"), CONFIG
    )
    assert values(found) == {
        "AWS_ACCESS_KEY_ID": "creds/AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY": "creds/AWS_SECRET_ACCESS_KEY",
        "S3_USE_HTTPS": "0",
        "S3_ENDPOINT": "minio:9000",
        "AWS_ENDPOINT_URL": "http://minio:9000",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "S3_VERIFY_SSL": "0",
    }


@pytest.mark.parametrize(
    ("endpoint", "use_https", "url"),
    [
        ("minio:9000", "", "https://minio:9000"),
        ("minio:9000", "0", "http://minio:9000"),
        ("https://minio", "0", "https://minio"),
    ],
)
def test_the_endpoints_scheme_decides_about_https(endpoint: str, use_https: str, url: str) -> None:
    data = {"AWS_SECRET_ACCESS_KEY": "k", "S3_ENDPOINT": endpoint, "S3_USE_HTTPS": use_https}
    assert values(from_secret(secret(**data), CONFIG))["AWS_ENDPOINT_URL"] == url


def test_the_config_fills_what_the_secret_leaves_out() -> None:
    config = CredentialsConfig(
        s3_secret_access_key_name="AWS_SECRET_ACCESS_KEY", s3={"s3Region": "us-east-1"}
    )
    found = values(from_secret(secret(AWS_SECRET_ACCESS_KEY="k"), config))
    assert found["AWS_DEFAULT_REGION"] == "us-east-1"
    assert "S3_ENDPOINT" not in found


def test_a_gcs_key_is_mounted() -> None:
    data = {"gcloud-application-credentials.json": "{}"}
    found = from_secret(secret(**data), CONFIG)
    assert values(found) == {
        "GOOGLE_APPLICATION_CREDENTIALS": "/var/secrets/gcloud-application-credentials.json"
    }
    assert found.volumes == ({"name": "user-gcp-sa", "secret": {"secretName": "creds"}},)
    assert found.mounts[0]["mountPath"] == "/var/secrets/"


@pytest.mark.parametrize(
    ("data", "env"),
    [
        ({"HF_TOKEN": "t"}, {"HF_TOKEN": "creds/HF_TOKEN"}),
        ({"https-host": "h.io", "headers": "{}"}, {"h.io-headers": "creds/headers"}),
        (
            {"AZURE_STORAGE_ACCESS_KEY": "k"},
            {"AZURE_STORAGE_ACCESS_KEY": "creds/AZURE_STORAGE_ACCESS_KEY"},
        ),
        (
            {"AZ_CLIENT_ID": "c", "AZ_TENANT_ID": "t"},
            {
                "AZURE_CLIENT_ID": "creds/AZ_CLIENT_ID",
                "AZURE_TENANT_ID": "creds/AZ_TENANT_ID",
            },
        ),
        ({"unknown": "x"}, {}),
    ],
)
def test_other_kinds_of_secret(data: dict[str, str], env: dict[str, str]) -> None:
    assert values(from_secret(secret(**data), CONFIG)) == env


def test_hdfs_credentials_are_mounted() -> None:
    found = from_secret(secret(HDFS_NAMENODE="n"), CONFIG)
    assert found.mounts[0]["mountPath"] == "/var/secrets/kserve-hdfscreds"


def test_an_account_gives_all_its_secrets() -> None:
    account = {"metadata": {"name": "sa"}, "secrets": [{"name": "a"}, {"name": "b"}]}
    secrets = {"a": secret("a", HF_TOKEN="t"), "b": secret("b", AWS_SECRET_ACCESS_KEY="k")}
    found = values(from_service_account(account, secrets, CONFIG))
    assert {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY"} <= set(found)
    only = values(from_service_account(account, secrets, CONFIG, only_secret="a"))
    assert set(only) == {"HF_TOKEN"}


def test_a_missing_account_is_ignored_and_a_missing_secret_is_not() -> None:
    assert from_service_account(None, {}, CONFIG) == Credentials()
    account = {"metadata": {"name": "sa"}, "secrets": [{"name": "gone"}]}
    with pytest.raises(Forbidden, match='Secret "gone" not found'):
        from_service_account(account, {}, CONFIG)


STORAGE = {"minio": json.dumps({"type": "s3", "bucket": "models", "region": "r"}), "default": "{}"}


def spec_of(path: str = "<scheme-placeholder>://iris", **spec: Any) -> tuple[str, Credentials]:
    secrets = {"storage-config": secret("storage-config", **STORAGE)}
    return from_storage_spec(StorageSpec(**spec), path, secrets, CONFIG)


def test_a_storage_block_becomes_a_uri() -> None:
    uri, found = spec_of(key="minio")
    assert uri == "s3://models/iris"
    assert values(found) == {"STORAGE_CONFIG": "storage-config/minio"}


def test_parameters_override_the_secrets_entry() -> None:
    uri, found = spec_of(key="minio", parameters={"bucket": "other", "type": "s3"})
    assert uri == "s3://other/iris"
    assert json.loads(values(found)["STORAGE_OVERRIDE_CONFIG"])["bucket"] == "other"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"key": "nope"},
            "specified storage key nope not found in storage secret storage-config",
        ),
        ({}, "unable to determine storage type"),
        (
            {"parameters": {"type": "s3"}},
            "format [s3] requires a bucket but one wasn't found in storage data or parameters",
        ),
    ],
)
def test_a_storage_block_that_cannot_be_resolved(spec: Any, message: str) -> None:
    with pytest.raises(Invalid) as refused:
        spec_of(**spec)
    assert str(refused.value) == message


def test_an_unsupported_type_in_the_secret() -> None:
    secrets = {"storage-config": secret("storage-config", k='{"type": "ftp"}')}
    with pytest.raises(Invalid, match=r"storage type \[ftp\] is not supported"):
        from_storage_spec(StorageSpec(key="k"), "x", secrets, CONFIG)


def test_broken_json_is_told_without_its_content() -> None:
    secrets = {"storage-config": secret("storage-config", k="{hunter2")}
    with pytest.raises(Invalid) as refused:
        from_storage_spec(StorageSpec(key="k"), "x", secrets, CONFIG)
    assert "invalid json encountered in key k of storage secret" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_missing_storage_secret_with_a_key() -> None:
    with pytest.raises(Invalid, match="can't read storage secret storage-config"):
        from_storage_spec(StorageSpec(key="k"), "x", {}, CONFIG)


def test_the_initializer_turns_its_config_into_variables() -> None:
    env = {
        "STORAGE_CONFIG": json.dumps(
            {"endpoint_url": "http://m:9000", "access_key_id": "i", "secret_access_key": "s"}
        ),
        "STORAGE_OVERRIDE_CONFIG": json.dumps({"region": "r", "verify_ssl": False}),
        "AWS_ACCESS_KEY_ID": "kept",
    }
    assert storage_config_env(env) == {
        "AWS_ENDPOINT_URL": "http://m:9000",
        "S3_ENDPOINT": "m:9000",
        "S3_USE_HTTPS": "0",
        "AWS_ACCESS_KEY_ID": "kept",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "r",
        "S3_VERIFY_SSL": "false",
    }
