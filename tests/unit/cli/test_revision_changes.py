"""What `rollout history` calls a change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from kserve_local.cli.revision_changes import changed_fields, changes

REVISION: dict[str, Any] = {
    "metadata": {
        "name": "iris-predictor-00001",
        "labels": {"serving.knative.dev/configurationGeneration": "1", "team": "a"},
        "annotations": {
            "internal.serving.kserve.io/storage-initializer-sourceuri": "s3://m/v1",
            "autoscaling.knative.dev/min-scale": "1",
            "kserve-local.dev/template-hash": "abc",
            "kserve-local.dev/manifest": "iris.yaml",
            "serving.knative.dev/routingStateModified": "2026-01-01T00:00:00Z",
        },
    },
    "spec": {
        "containerConcurrency": 0,
        "timeoutSeconds": 300,
        "containers": [
            {
                "name": "kserve-container",
                "image": "kserve/sklearnserver:latest",
                "args": ["--model_name=iris", "--http_port=8080", "serve"],
                "env": [{"name": "LEVEL", "value": "info"}],
                "resources": {"limits": {"cpu": "1"}},
            }
        ],
    },
}


def edited(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> dict[str, Any]:
    obj = copy.deepcopy(REVISION)
    change(obj, obj["spec"]["containers"][0])
    return obj


def annotate(**given: str) -> dict[str, Any]:
    return edited(lambda o, c: o["metadata"]["annotations"].update(given))


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (
            annotate(
                **{"internal.serving.kserve.io/storage-initializer-sourceuri": "s3://m/v2"}
            ),
            ["storageUri s3://m/v1 → s3://m/v2"],
        ),
        (annotate(**{"autoscaling.knative.dev/min-scale": "2"}), ["minReplicas 1 → 2"]),
        (annotate(**{"autoscaling.knative.dev/target": "5"}), ["scaleTarget + 5"]),
        (annotate(mine="x"), ["annotation mine + x"]),
        (edited(lambda o, c: o["metadata"]["labels"].update(team="b")), ["label team a → b"]),
        (edited(lambda o, c: o["spec"].update(timeoutSeconds=60)), ["timeout 300 → 60"]),
        (
            edited(lambda o, c: o["spec"].update(responseStartTimeoutSeconds=60)),
            [],
        ),
        (
            edited(lambda o, c: c.update(image="me/server:2")),
            ["image kserve/sklearnserver:latest → me/server:2"],
        ),
        (
            edited(lambda o, c: c.update(args=["--model_name=iris", "--workers=2", "serve", "-v"])),
            ["args --http_port - 8080", "args serve → serve -v", "args --workers + 2"],
        ),
        (
            edited(lambda o, c: c["env"].append({"name": "KEY", "valueFrom": {"x": 1}})),
            ['env KEY + {"x": 1}'],
        ),
        (edited(lambda o, c: c["env"].clear()), ["env LEVEL - info"]),
        (
            edited(lambda o, c: c["resources"]["limits"].update(cpu="2")),
            ["resources.limits.cpu 1 → 2"],
        ),
        (
            edited(
                lambda o, c: o["spec"].update(volumes=[{"name": "v", "hostPath": {"path": "data"}}])
            ),
            ["volumes[v].hostPath.path + data"],
        ),
        (
            edited(
                lambda o, c: o["spec"].update(
                    initContainers=[{"name": "storage-initializer", "args": ["gs://a", "/mnt/a"]}]
                )
            ),
            ["storage-initializer: args + gs://a /mnt/a"],
        ),
        (
            edited(lambda o, c: o["spec"]["containers"].append({"name": "agent", "image": "a:1"})),
            ["agent: image + a:1"],
        ),
    ],
)  # fmt: skip
def test_a_change_has_the_name_a_user_gave_it(new: dict[str, Any], expected: list[str]) -> None:
    assert sorted(changes(REVISION, new)) == sorted(expected)


def test_what_the_chain_writes_is_no_change() -> None:
    other = edited(lambda o, c: o["metadata"].update(name="iris-predictor-00002"))
    other["metadata"]["annotations"] |= {
        "kserve-local.dev/template-hash": "def",
        "kserve-local.dev/manifest": "other.yaml",
        "serving.knative.dev/routingStateModified": "2026-02-01T00:00:00Z",
    }
    other["metadata"]["labels"]["serving.knative.dev/configurationGeneration"] = "2"
    assert changes(REVISION, other) == []


def test_models_and_images_come_first_and_long_values_are_cut() -> None:
    new = edited(lambda o, c: c.update(image="x" * 100))
    new["metadata"]["labels"]["team"] = "b"
    found = changes(REVISION, new)
    assert [text.split()[0] for text in found] == ["image", "label"]
    assert found[0].endswith("...")
    assert len(found[0]) < 120


def test_changed_fields_are_paths() -> None:
    old = {"spec": {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": 1}}
    new = {"spec": {"a": {"b": 2, "c": [1, {"d": 3}]}, "f": 1}}
    assert changed_fields(old, new) == ["spec.a.b", "spec.a.c[1].d", "spec.e", "spec.f"]
    assert changed_fields([1], [1, 2], "x") == ["x"]
    assert changed_fields(old, copy.deepcopy(old)) == []
