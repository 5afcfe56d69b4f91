"""What environments mean to S3 and the filters; names that must not become files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kserve_local.errors import StorageError
from kserve_local.storage.aws_credentials import request_env, s3_settings
from kserve_local.storage.http import Limits, Stop
from kserve_local.storage.remote import filters, safe_path, wanted
from kserve_local.storage.s3 import S3Source
from kserve_local.storage.sigv4 import AwsKeys

KEYS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}


def env_of(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"HOME": str(tmp_path), **more}


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({}, "https://b.s3.us-east-1.amazonaws.com/m"),
        ({"AWS_DEFAULT_REGION": "eu-west-3"}, "https://b.s3.eu-west-3.amazonaws.com/m"),
        ({"AWS_ENDPOINT_URL": "http://h:9000/"}, "http://h:9000/b/m"),
        ({"S3_ENDPOINT": "h:9000"}, "https://h:9000/b/m"),
        ({"S3_ENDPOINT": "h:9000", "S3_USE_HTTPS": "0"}, "http://h:9000/b/m"),
        ({"AWS_ENDPOINT_URL": "https://h", "S3_USER_VIRTUAL_BUCKET": "true"}, "https://b.h/m"),
        (
            {"AWS_ENDPOINT_URL": "https://s3.amazonaws.com", "AWS_REGION": "eu-west-3"},
            "https://b.s3.eu-west-3.amazonaws.com/m",
        ),
        ({"S3_USE_ACCELERATE": "true"}, "https://b.s3-accelerate.amazonaws.com/m"),
    ],
)
def test_where_an_object_is_read(tmp_path: Path, env: dict[str, str], url: str) -> None:
    source = S3Source("s3://b/m", env_of(tmp_path, **env), Limits(), Stop())
    assert source._url("m") == url


def test_a_bucket_with_dots_stays_out_of_the_host_name(tmp_path: Path) -> None:
    """No certificate would match."""
    source = S3Source("s3://a.b/m", env_of(tmp_path), Limits(), Stop())
    assert source._url("m") == "https://s3.us-east-1.amazonaws.com/a.b/m"


def test_two_identities_are_not_mixed() -> None:
    """Keys of a Secret do not meet the user's session token or profile."""
    user = {"AWS_SESSION_TOKEN": "t", "AWS_PROFILE": "p", "AWS_ENDPOINT_URL": "http://mine"}
    merged = request_env(user, KEYS)
    assert merged == {**KEYS, "AWS_ENDPOINT_URL": "http://mine"}
    assert request_env(user, {"OTHER": "x"})["AWS_PROFILE"] == "p"


def test_anonymous_wins_over_keys(tmp_path: Path) -> None:
    settings = s3_settings(env_of(tmp_path, **KEYS, awsAnonymousCredential="true"))
    assert settings.keys is None


def test_a_profile_may_name_a_program_for_its_keys(tmp_path: Path) -> None:
    program = tmp_path / "keys"
    program.write_text('#!/bin/sh\necho \'{"AccessKeyId": "a", "SecretAccessKey": "b"}\'\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / ".aws").mkdir()
    config = tmp_path / ".aws" / "config"
    config.write_text(f"[profile p]\ncredential_process = {program}\n")
    env = env_of(tmp_path, AWS_PROFILE="p", PATH=os.environ["PATH"])
    assert s3_settings(env).keys == AwsKeys("a", "b")
    program.write_text("#!/bin/sh\necho 'token expired' >&2; exit 1\n")
    with pytest.raises(StorageError, match="gives no keys: token expired"):
        s3_settings(env)
    config.write_text("[profile p]\nsso_session = s\n")
    with pytest.raises(StorageError, match="needs the aws program"):
        s3_settings({**env, "PATH": str(tmp_path / "none")})


def test_a_ca_bundle_must_exist(tmp_path: Path) -> None:
    env = env_of(tmp_path, AWS_CA_BUNDLE="/nowhere/ca.crt")
    with pytest.raises(StorageError, match=r"^Failed to find ca bundle file\(/nowhere/ca\.crt\)\."):
        S3Source("s3://b/m", env, Limits(), Stop())
    S3Source("s3://b/m", {**env, "S3_VERIFY_SSL": "0"}, Limits(), Stop())


@pytest.mark.parametrize(
    ("allow", "ignore", "expected"),
    [
        ("", "", ["a.bin", "d/b.bin", "c.txt"]),
        ('["*.bin"]', "", ["a.bin", "d/b.bin"]),
        ("*.txt, a.*", "", ["a.bin", "c.txt"]),
        ("*.bin", "d/*", ["a.bin"]),
    ],
)
def test_filters(allow: str, ignore: str, expected: list[str]) -> None:
    env = {"STORAGE_ALLOW_PATTERNS": allow, "STORAGE_IGNORE_PATTERNS": ignore}
    paths = ["a.bin", "d/b.bin", "c.txt"]
    assert [path for path in paths if wanted(path, *filters(env))] == expected


@pytest.mark.parametrize("path", ["../a", "a/../../b", "", "/", "a\0b", "a/.."])
def test_names_that_are_no_files(path: str) -> None:
    with pytest.raises(StorageError):
        safe_path(path, what="s3://b")
    assert safe_path("/a//b/./c", what="s3://b") == "a/b/c"
