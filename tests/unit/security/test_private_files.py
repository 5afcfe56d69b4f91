"""Secrets stay ours: keys and tokens that others may read, logins in addresses, links in /tmp."""

from __future__ import annotations

from pathlib import Path

import pytest

from kserve_local.api.storage_uris import without_secrets
from kserve_local.errors import KServeLocalError
from kserve_local.settings import Settings
from kserve_local.storage.http import Limits, Stop
from kserve_local.storage.web import WebSource
from kserve_local.supervisor import certificates, leftovers, statedir
from kserve_local.supervisor.supervisor import _token


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    project = tmp_path / "p"
    project.mkdir()
    return Settings(
        project=project,
        state=project / ".kserve-local",
        cache=tmp_path / "cache",
        runtime=tmp_path / "runtime" / "x",
    )


def test_a_token_that_came_with_the_project_is_replaced(settings: Settings) -> None:
    statedir.prepare(settings)
    path = settings.run_dir / "token"
    path.write_text("x" * 43)
    path.chmod(0o644)
    made = _token(settings)
    assert made != "x" * 43
    assert path.stat().st_mode & 0o777 == 0o600
    assert _token(settings) == made
    path.write_text("")
    assert len(_token(settings)) >= 43


def test_a_key_that_others_may_read_is_replaced(tmp_path: Path) -> None:
    first = certificates.ensure(tmp_path)
    before = first.ca.read_bytes()
    assert certificates.ensure(tmp_path).ca.read_bytes() == before
    (tmp_path / "ca.key").chmod(0o644)
    assert certificates.ensure(tmp_path).ca.read_bytes() != before
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600


def test_a_runtime_folder_that_is_a_link_is_refused(settings: Settings, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    settings.runtime.parent.symlink_to(elsewhere)
    with pytest.raises(KServeLocalError, match="runtime folder"):
        statedir.prepare(settings)
    assert elsewhere.stat().st_mode & 0o777 == 0o755
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://user:secret@host/m.zip", "https://host/m.zip"),
        ("https://host/m.zip?X-Amz-Signature=secret", "https://host/m.zip?..."),
        ("s3://bucket/model", "s3://bucket/model"),
        ("./model", "./model"),
        ("http://[secret", "http://..."),
    ],
)
def test_logs_show_no_secrets_of_an_address(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown


def test_headers_for_a_host_do_not_leave_tls() -> None:
    env = {"host.example-headers": '{"Authorization": "Bearer secret"}'}
    source = WebSource("https://host.example/m.bin", env, Limits(), Stop())
    assert source._custom("https://host.example/other") == {"Authorization": "Bearer secret"}
    assert source._custom("http://host.example/other") == {}
    assert source._custom("https://evil.example/other") == {}
    source.close()


def test_nothing_mounted_stays_after_the_last_replica(settings: Settings) -> None:
    statedir.prepare(settings)
    secret = settings.run_dir / "volumes" / "uid" / "v" / "password"
    secret.parent.mkdir(parents=True)
    secret.write_text("secret")
    leftovers.remove(settings, grace=0.0)
    assert not secret.exists()
    assert not (settings.run_dir / "volumes").exists()
