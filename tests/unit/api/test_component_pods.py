"""Transformer and explainer pods: control-plane.md 4.4."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.api import config, defaults
from kserve_local.controllers.component_pods import explainer_pod, transformer_pod
from kserve_local.errors import Invalid

CONFIG = config.parse(None)
HOST = "iris-predictor.default"


def isvc(**spec: Any) -> dict[str, Any]:
    predictor = {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "gs://b/m"}}
    return defaults.default(
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": "iris", "namespace": "default"},
            "spec": {"predictor": predictor, **spec},
        },
        config=CONFIG,
    )


def custom(*args: str, env: list[Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "containers": [{"name": "t", "image": "x", "args": list(args), "env": env or []}],
        **fields,
    }


def args_of(parts: Any) -> list[str]:
    return list(parts.spec["containers"][0]["args"])


def test_transformer_arguments() -> None:
    """Flags and values are separate items; a given flag stays."""
    parts = transformer_pod(isvc(transformer=custom(containerConcurrency=3)), config=CONFIG)
    assert args_of(parts) == [
        "--model_name",
        "iris",
        "--predictor_host",
        HOST,
        "--http_port",
        "8080",
        "--workers",
        "3",
    ]
    given = ("--model_name=mine", "--predictor_host", "h", "--http_port=9", "--workers=1")
    same = transformer_pod(isvc(transformer=custom(*given, containerConcurrency=3)), config=CONFIG)
    assert args_of(same) == list(given)
    assert parts.labels["component"] == "transformer"
    (container,) = parts.spec["containers"]
    assert container["name"] == "kserve-container"
    assert container["env"] == [{"name": "INFERENCE_SERVICE_NAME", "value": "iris"}]


def test_the_predictors_variant_name_is_in_the_host() -> None:
    """control-plane.md 4.1."""
    obj = isvc(transformer=custom())
    obj["spec"]["predictor"]["name"] = "v2"
    args = args_of(transformer_pod(obj, config=CONFIG))
    assert args[args.index("--predictor_host") + 1] == "iris-v2-predictor.default"


def test_storage_logger_and_batcher_of_a_transformer() -> None:
    """STORAGE_URI is the source; an explainer has no batcher."""
    component = custom(
        env=[{"name": "STORAGE_URI", "value": "gs://b/t"}],
        logger={"mode": "all"},
        batcher={},
        annotations={"mine": "1"},
    )
    internal = "internal.serving.kserve.io/"
    transformer = transformer_pod(isvc(transformer=component), config=CONFIG).annotations
    assert transformer[internal + "storage-initializer-sourceuri"] == "gs://b/t"
    assert transformer[internal + "logger"] == "true"
    assert transformer[internal + "batcher"] == "true"
    assert transformer["mine"] == "1"
    explainer = explainer_pod(isvc(explainer=component), config=CONFIG).annotations
    assert internal + "batcher" not in explainer
    bad = custom(env=[{"name": "STORAGE_URI", "value": "s4://b"}])
    with pytest.raises(Invalid, match="StorageURI not supported"):
        transformer_pod(isvc(transformer=bad), config=CONFIG)


def test_explainer_arguments() -> None:
    """The port comes whatever the user gave, and no INFERENCE_SERVICE_NAME."""
    parts = explainer_pod(isvc(explainer=custom("--http_port=9")), config=CONFIG)
    assert args_of(parts) == [
        "--http_port=9",
        "--model_name",
        "iris",
        "--predictor_host",
        HOST,
        "--http_port",
        "8080",
    ]
    assert parts.spec["containers"][0]["env"] == []
    assert parts.labels["component"] == "explainer"


def test_art() -> None:
    """Image and version from the configuration, config sorted, user arguments twice."""
    art = {
        "type": "SquareAttack",
        "storageUri": "gs://b/e",
        "config": {"nb_classes": "10", "eps": "1"},
        "args": ["--x"],
    }
    parts = explainer_pod(isvc(explainer={"art": art, "containerConcurrency": 2}), config=CONFIG)
    (container,) = parts.spec["containers"]
    assert container["name"] == "kserve-container"
    assert container["image"] == "kserve/art-explainer:latest"
    assert container["args"] == [
        "--model_name",
        "iris",
        "--http_port",
        "8080",
        "--predictor_host",
        HOST,
        "--workers",
        "2",
        "--storage_uri",
        "/mnt/models",
        "--adversary_type",
        "SquareAttack",
        "--eps",
        "1",
        "--nb_classes",
        "10",
        "--x",
        "--x",
    ]
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "2Gi"}
    assert "type" not in container
