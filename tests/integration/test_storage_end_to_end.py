"""A model from a bucket, with credentials as KServe's users keep them: Secret and ServiceAccount.

The whole way: YAML, admission, controllers, node agent, storage initializer, moto's S3 server, the
model server, an answer. And two seeded faults with the exact words in `status`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.integration.project import Project, project, sample
from tests.integration.storage_world import KEYS, s3_server

IRIS = {"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]}


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[FaultProxy]:
    """A bucket with the iris sample's model in it, behind a proxy."""
    model = sample("sklearn-iris", tmp_path / "sample") / "model"
    with s3_server() as (url, client), fault_proxy(url) as proxy:
        client.create_bucket(Bucket="models")
        for path in model.rglob("*"):
            if path.is_file():
                key = f"iris/{path.relative_to(model)}"
                client.put_object(Bucket="models", Key=key, Body=path.read_bytes())
        yield proxy


def manifest(endpoint: str, uri: str) -> str:
    host = endpoint.removeprefix("http://")
    return f"""\
apiVersion: v1
kind: Secret
metadata:
  name: s3-keys
  annotations:
    serving.kserve.io/s3-endpoint: {host}
    serving.kserve.io/s3-usehttps: "0"
    serving.kserve.io/s3-region: eu-west-3
stringData:
  AWS_ACCESS_KEY_ID: {KEYS["AWS_ACCESS_KEY_ID"]}
  AWS_SECRET_ACCESS_KEY: {KEYS["AWS_SECRET_ACCESS_KEY"]}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: reader
secrets:
- name: s3-keys
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: iris
spec:
  predictor:
    serviceAccountName: reader
    model:
      modelFormat:
        name: sklearn
      storageUri: {uri}
"""


def start(p: Project, text: str, *, check: int) -> None:
    (p.folder / "iris.yaml").write_text(text)
    p.up(check=check)


def home(tmp_path: Path) -> dict[str, str]:
    """Return an environment with a cache of its own and nobody's logins."""
    return {"XDG_CACHE_HOME": str(tmp_path / "cache"), "AWS_CONFIG_FILE": "/dev/null"}


def test_a_model_in_a_bucket_is_served(bucket: FaultProxy, tmp_path: Path) -> None:
    with project(tmp_path / "p", env=home(tmp_path)) as p:
        start(p, manifest(bucket.url, "s3://models/iris"), check=0)
        assert p.call("/v1/models/iris:predict", IRIS) == (200, {"predictions": [1, 1]})
        assert "/eu-west-3/s3/" in bucket.seen[0].headers["authorization"]
        log = p.run("logs", "iris", "-c", "storage-initializer").stdout
        assert "Successfully copied s3://models/iris to /mnt/models" in log
        assert KEYS["AWS_SECRET_ACCESS_KEY"] not in log


DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@pytest.mark.parametrize(
    ("uri", "faults", "words", "hint"),
    [
        (
            "s3://models/iris",
            [Fault(status=403, times=999, body=DENIED)],
            "An error occurred (AccessDenied) when calling the ListObjects operation: "
            "Access Denied",
            'access key AKIAEXAMPLE may not read bucket "models"',
        ),
        (
            "s3://models/none",
            [],
            "Failed to fetch model. No model found in none.",
            'bucket "models"',
        ),
        (
            "s3://no-such-bucket/iris",
            [],
            "An error occurred (NoSuchBucket) when calling the ListObjects operation: "
            "The specified bucket does not exist",
            'check the bucket "no-such-bucket"',
        ),
    ],
    ids=["403", "404", "404-bucket"],
)
def test_a_source_that_refuses_is_told_in_status(
    bucket: FaultProxy, tmp_path: Path, uri: str, faults: list[Fault], words: str, hint: str
) -> None:
    """The cause stands in `status`, in KServe's fields and words, with what helps."""
    bucket.faults += faults
    with project(tmp_path / "p", env=home(tmp_path)) as p:
        start(p, manifest(bucket.url, uri), check=4)
        model = p.isvc("iris")["status"]["modelStatus"]
        assert model["transitionStatus"] == "BlockedByFailedLoad"
        assert model["states"]["targetModelState"] == "FailedToLoad"
        first, _, rest = model["lastFailureInfo"].pop("message").partition("\n")
        assert first == words
        assert rest.startswith(f"Next step: {hint}")
        assert bucket.url in rest
        assert model["lastFailureInfo"] == {"reason": "ModelLoadFailed", "exitCode": 1}
