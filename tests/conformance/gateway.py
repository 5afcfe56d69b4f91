"""The second pass of `make conformance`: the same cases as InferenceServices behind the gateway.

One project under `kserve-local up` serves the framework deployments from built-in runtimes and the
custom predictors `echo_model.py` and `v1_model.py`, unmodified, with the real `kserve` SDK.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMATS = {"sklearnserver": "sklearn", "xgbserver": "xgboost", "lgbserver": "lightgbm"}
# Custom predictors of the recording, and how many non-advisory cases each has.
CUSTOM = {"v1": 54, "v1-ce": 7}


def write_project(folder: Path, models: Path, here: Path, deployments: tuple[str, ...]) -> None:
    """Write manifests and `kserve-local.yaml` for the deployments into `folder`."""
    described = json.loads((here / "deployments.json").read_text(encoding="utf-8"))["deployments"]
    images: dict[str, Any] = {}
    documents = []
    for name in deployments:
        deployment = described[name]
        if "module" in deployment:
            predictor = _framework(deployment, models)
        else:
            script = Path(deployment["script"].replace("{here}", ""))
            image = f"conformance/{script.stem.replace('_', '-')}:dev"
            command = ["python", script.name.lstrip("/")]
            images[image] = {"context": str(here / "models"), "command": command}
            predictor = _custom(deployment, image)
        documents.append(
            {
                "apiVersion": "serving.kserve.io/v1beta1",
                "kind": "InferenceService",
                "metadata": {"name": name},
                "spec": {"predictor": predictor},
            }
        )
    manifest = {"apiVersion": "v1", "kind": "List", "items": documents}
    (folder / "services.yaml").write_text(json.dumps(manifest, indent=1))
    (folder / "kserve-local.yaml").write_text(json.dumps({"images": images}, indent=1))


def _env(deployment: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": n, "value": v} for n, v in deployment.get("env", {}).items()]


def _framework(deployment: Mapping[str, Any], models: Path) -> dict[str, Any]:
    arguments = dict(a.removeprefix("--").split("=", 1) for a in deployment["args"])
    folder = arguments["model_dir"].replace("{models}", str(models))
    # The runtime gives model name, folder and port; what else the recording passed follows.
    extra = [
        a
        for a in deployment["args"]
        if not a.startswith(("--model_name", "--model_dir", "--nthread"))
    ]
    model: dict[str, Any] = {
        "modelFormat": {"name": FORMATS[deployment["module"]]},
        "storageUri": folder,
        "env": _env(deployment),
    }
    if extra:
        model["args"] = extra
    return {"model": model}


def _custom(deployment: Mapping[str, Any], image: str) -> dict[str, Any]:
    container: dict[str, Any] = {"name": "kserve-container", "image": image}
    if deployment["args"]:
        container["args"] = deployment["args"]
    if deployment.get("env"):
        container["env"] = _env(deployment)
    return {"containers": [container]}
