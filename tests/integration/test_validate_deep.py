"""`kserve-local validate --deep` against real servers: what can be read, with which credentials."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kserve_local.cli.main import cli
from tests.fakes.file_server import FileServer, HubServer, Repository, WebFile, serving
from tests.integration.storage_world import KEYS, gcs_server, s3_server
from tests.integration.test_storage_gcs import post

DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and nobody's credentials."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("HF_TOKEN", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(FileServer()) as found:
        yield found


def service(uri: str, name: str = "iris", account: str = "") -> str:
    """The storageUri stands at line 9, column 7."""
    text = (
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\n"
        f"metadata: {{name: {name}}}\nspec:\n  predictor:\n"
        f"    serviceAccountName: {account or 'default'}\n    model:\n"
        f"      modelFormat: {{name: sklearn}}\n      storageUri: {uri}\n---\n"
    )
    return text


def account(name: str, data: dict[str, str], annotations: dict[str, str] | None = None) -> str:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{name}-secret", "annotations": annotations or {}},
        "data": {k: base64.b64encode(v.encode()).decode() for k, v in data.items()},
    }
    holder = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name},
        "secrets": [{"name": f"{name}-secret"}],
    }
    return f"{json.dumps(secret)}\n---\n{json.dumps(holder)}\n---\n"


class Said:
    """The outcome of one `validate --deep --json`."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *args: str) -> None:
        code = cli.main(["validate", "--deep", "--json", *args], standalone_mode=False)
        self.code = code or 0
        (self.file,) = json.loads(capsys.readouterr().out)["data"]["files"]
        self.findings: list[dict[str, Any]] = self.file["findings"]

    @property
    def only(self) -> str:
        """The message of the one finding, an error at the storageUri."""
        (found,) = self.findings
        assert (found["line"], found["column"], found["severity"]) == (9, 7, "error")
        assert found["field"] == "spec.predictor.model.storageUri"
        assert self.code == 3
        # A cluster takes the object all the same.
        assert (self.file["valid"], self.file["schema_valid"]) == (True, True)
        return str(found["message"])


def deep(project: Path, capsys: pytest.CaptureFixture[str], text: str, *args: str) -> Said:
    (project / "all.yaml").write_text(text)
    return Said(capsys, *args)


def test_a_web_server(
    project: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/model.bin"] = WebFile(b"x" * 1_000_000)
    server.files["/empty.bin"] = WebFile(b"")
    server.files["/secret.bin"] = WebFile(b"x", needs=("Authorization", "Bearer me"))
    assert deep(project, capsys, service(f"{server.url}/model.bin")).findings == []
    # One byte was asked for, not the model.
    assert [headers["range"] for _, headers in server.seen] == ["bytes=0-0"]
    said = deep(project, capsys, service(f"{server.url}/gone.bin")).only
    assert f"URI: {server.url}/gone.bin returned a 404 response code.\nNext step: " in said
    said = deep(project, capsys, service(f"{server.url}/empty.bin")).only
    assert "is an empty file" in said
    text = service(f"{server.url}/secret.bin", account="me")
    said = deep(project, capsys, text + account("me", {})).only
    assert f"URI: {server.url}/secret.bin returned a 403 response code." in said
    mine = {"https-host": "127.0.0.1", "headers": '{"Authorization": "Bearer me"}'}
    assert deep(project, capsys, text + account("me", mine)).findings == []


def test_s3_with_the_secret_of_the_service_account(
    project: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with s3_server() as (url, client):
        client.create_bucket(Bucket="bkt")
        client.put_object(Bucket="bkt", Key="m/", Body=b"")
        client.put_object(Bucket="bkt", Key="m/model.bin", Body=b"x")
        client.put_object(Bucket="bkt", Key="e/", Body=b"")

        def asked(uri: str, endpoint: str = url) -> Said:
            notes = {"serving.kserve.io/s3-endpoint": endpoint}
            return deep(project, capsys, service(uri, account="s") + account("s", KEYS, notes))

        assert asked("s3://bkt/m").findings == []
        assert "No model found in e" in asked("s3://bkt/e").only
        assert "An error occurred (NoSuchBucket) when calling the ListObj" in asked("s3://c/m").only
        server.files["/bkt/"] = WebFile(DENIED, status=403)
        said = asked("s3://bkt/m", server.url).only
        assert "An error occurred (AccessDenied) when calling the ListObjects operation" in said
        assert "AKIAEXAMPLE may not read" in said


def test_a_secret_that_is_not_there_is_the_webhooks_refusal(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = service("s3://b/m", account="s") + account("s", KEYS).replace(
        '"s-secret"}]', '"other"}]'
    )
    assert 'Secret "other" not found' in deep(project, capsys, text).only


def test_google_cloud_storage(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with gcs_server() as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        post(f"{url}/storage/v1/b?project=p", b'{"name": "b"}', "application/json")
        upload = f"{url}/upload/storage/v1/b/b/o?uploadType=media&name=m/model.bin"
        post(upload, b"x", "application/octet-stream")
        for uri in ("gs://b/m", "gs://b/m/model.bin"):
            assert deep(project, capsys, service(uri)).findings == []
        assert "No model found in gs://b/e" in deep(project, capsys, service("gs://b/e")).only
        assert "404 GET" in deep(project, capsys, service("gs://c/e")).only


def test_the_key_file_of_a_secret_is_used(
    project: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """It lies in a folder of its own meanwhile; here it holds no key."""
    text = service("gs://b/m", account="g")
    said = deep(project, capsys, text + account("g", {"gcloud-application-credentials.json": "x"}))
    assert "is not a valid json file" in said.only


def test_the_hub(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(HubServer()) as hub:
        assert isinstance(hub, HubServer)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repositories["o/open"] = Repository({"__init__.py": b"", "config.json": b"{}"})
        hub.repositories["o/empty"] = Repository({})
        hub.repositories["o/gated"] = Repository({"config.json": b"{}"}, token="t", gated=True)
        assert deep(project, capsys, service("hf://o/open")).findings == []
        assert (
            "No model found in hf://o/empty" in deep(project, capsys, service("hf://o/empty")).only
        )
        assert "Repository Not Found" in deep(project, capsys, service("hf://o/gone")).only
        text = service("hf://o/gated", account="h")
        said = deep(project, capsys, text + account("h", {})).only
        assert "403 Client Error. Cannot access gated repo" in said
        assert deep(project, capsys, text + account("h", {"HF_TOKEN": "t"})).findings == []


def test_local_folders_claims_and_mirrors(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "kserve-local.yaml").write_text(
        "storage: {claims: {c: ./full}, mirrors: {'s3://prod/': ./full, 'oci://prod/': ./full}}\n"
    )
    (project / "full").mkdir()
    (project / "full" / "model.bin").touch()
    (project / "empty").mkdir()
    for uri in ("./full", "full/model.bin", "pvc://c", "pvc://c/model.bin", "s3://prod/model.bin"):
        assert deep(project, capsys, service(uri)).findings == [], uri
    assert "Local path ./gone does not exist." in deep(project, capsys, service("./gone")).only
    assert '/empty" holds no files' in deep(project, capsys, service("empty")).only
    assert 'persistentvolumeclaim "d" not found' in deep(project, capsys, service("pvc://d")).only
    assert "does not exist" in deep(project, capsys, service("pvc://c/gone")).only
    assert "No model found in gone" in deep(project, capsys, service("s3://prod/gone")).only
    # Named on the command line, the file has the same mirrors.
    assert deep(project, capsys, service("s3://prod/model.bin"), "all.yaml").findings == []


def test_every_component_and_kind_is_asked(
    project: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = f"{server.url}/gone.bin"
    text = (
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: all}\n"
        "spec:\n  predictor:\n    sklearn:\n"
        f"      storageUri: {gone}\n"
        "  transformer:\n    containers:\n    - name: kserve-container\n      image: i\n"
        f"      env:\n      - name: STORAGE_URI\n        value: {gone}\n"
        "  explainer:\n    containers: [{name: kserve-container, image: i}]\n    storageUris:\n"
        f"    - uri: {gone}\n"
        "---\napiVersion: serving.kserve.io/v1alpha2\nkind: LLMInferenceService\n"
        f"metadata: {{name: llm}}\nspec:\n  model:\n    uri: {gone}\n"
    )
    said = deep(project, capsys, text)
    places = {(f["line"], f["column"]) for f in said.findings if f["severity"] == "error"}
    assert places == {(7, 7), (14, 9), (18, 7), (25, 5)}
    assert len(server.seen) == 1


def test_offline_asks_nobody(
    project: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    said = deep(
        project, capsys, service(f"{server.url}/gone.bin") + service("./x", "b"), "--offline"
    )
    note, error = said.findings
    assert note["severity"] == "note"
    assert note["message"].endswith("/gone.bin: not checked, offline mode is on")
    assert "does not exist" in error["message"]
    assert server.seen == []


def test_without_deep_nobody_is_asked(
    project: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "all.yaml").write_text(service(f"{server.url}/gone.bin"))
    assert not cli.main(["validate"], standalone_mode=False)
    assert server.seen == []


async def test_many_slow_sources_wait_for_each_other_no_longer_than_once(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen that never answer: two rounds of eight."""
    from kserve_local.api.manifest import load
    from kserve_local.api.review import review
    from kserve_local.cli.reachability import with_reachability
    from kserve_local.settings import load as load_settings

    with socket.create_server(("127.0.0.1", 0), backlog=64) as deaf:
        port = deaf.getsockname()[1]
        text = "".join(service(f"http://127.0.0.1:{port}/{n}.bin", f"s{n}") for n in range(16))
        files = {"all.yaml": load(text, "all.yaml")}
        begun = time.monotonic()
        (report,) = await with_reachability(
            review(files), files, load_settings(project), namespace="default", patience=0.3
        )
    assert time.monotonic() - begun < 3
    assert len(report.findings) == 16
    assert all(f.message.endswith("no answer within 0.3 s") for f in report.findings)
