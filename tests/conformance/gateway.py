"""The second pass of `make conformance`: the same cases as InferenceServices behind the gateway.

One project under `kserve-local up` serves the framework deployments from built-in runtimes, and the
custom predictors `echo_model.py` and `v1_model.py` and the transformers of `transformer.py`,
unmodified, with the real `kserve` SDK. A transformer gets a predictor like the one that it was
recorded with, in the same InferenceService, and its address from the controller.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FORMATS = {"sklearnserver": "sklearn", "xgbserver": "xgboost", "lgbserver": "lightgbm"}
# What only this pass serves, and how many non-advisory cases each deployment has.
CUSTOM = {
    "v1": 54,
    "v1-ce": 7,
    "tr-iris-v1": 14,
    "tr-iris-v2": 28,
    "tr-iris-grpc": 2,
    "tr-echo-v1": 3,
    "tr-echo-grpc": 19,
    "tr-v1": 9,
    "tr-down-v1": 7,
    "tr-down-v2": 5,
    "tr-down-grpc": 6,
    "tr-none": 6,
}
CUSTOM_GRPC = {
    "v1": 5,
    "tr-iris-v1": 3,
    "tr-iris-v2": 8,
    "tr-iris-grpc": 3,
    "tr-echo-grpc": 13,
    "tr-down-v1": 2,
    "tr-down-v2": 2,
    "tr-down-grpc": 4,
}
_PREDICTOR = re.compile(r"--predictor_host=\{(?:http|grpc):(.+)\}")


@contextlib.contextmanager
def served(folder: Path, *flags: str, patient: bool = False) -> Iterator[str]:
    """Serve a project while the block is open; yields the gateway's URL.

    Args:
        flags: For `kserve-local up`.
        patient: Images may have to be built first.
    """
    tool = [sys.executable, "-m", "kserve_local.cli.main", "-C", str(folder)]
    up = ["up", "-d", "--wait", "--port", "auto", "--api-port", "auto", *flags]
    try:
        limit = "900s" if patient else "180s"
        subprocess.run([*tool, *up, "--timeout", limit], check=True, stdout=sys.stderr)
        run_file = json.loads((folder / ".kserve-local" / "run" / "supervisor.json").read_text())
        yield run_file["gateway"]["url"]
    finally:
        subprocess.run([*tool, "down"], check=False)


def write_project(folder: Path, models: Path, here: Path, deployments: tuple[str, ...]) -> None:
    """Write manifests and `kserve-local.yaml` for the deployments into `folder`."""
    described = json.loads((here / "deployments.json").read_text(encoding="utf-8"))["deployments"]
    images: dict[str, Any] = {}
    documents = []
    for name in deployments:
        deployment = described[name]
        spec = {"predictor": _component(deployment, images, models, here)}
        behind = [m.group(1) for a in deployment["args"] if (m := _PREDICTOR.fullmatch(a))]
        if behind or any(a.startswith("--predictor_host") for a in deployment["args"]):
            # An address of the recording's machine stays; that of a deployment the controller
            # knows better.
            args = [a for a in deployment["args"] if not _PREDICTOR.fullmatch(a)]
            spec["transformer"] = _component({**deployment, "args": args}, images, models, here)
            predictor = described[behind[0] if behind else "v1"]
            spec["predictor"] = _component(predictor, images, models, here)
            if "module" in predictor:
                # The transformer asks for the model by the name that the recording gave it.
                named = [a for a in predictor["args"] if a.startswith("--model_name=")]
                spec["predictor"]["model"].setdefault("args", []).extend(named)
        documents.append(
            {
                "apiVersion": "serving.kserve.io/v1beta1",
                "kind": "InferenceService",
                "metadata": {"name": name},
                "spec": spec,
            }
        )
    manifest = {"apiVersion": "v1", "kind": "List", "items": documents}
    (folder / "services.yaml").write_text(json.dumps(manifest, indent=1))
    (folder / "kserve-local.yaml").write_text(json.dumps({"images": images}, indent=1))


def _component(
    deployment: Mapping[str, Any], images: dict[str, Any], models: Path, here: Path
) -> dict[str, Any]:
    if "module" in deployment:
        return _framework(deployment, models)
    script = Path(deployment["script"].replace("{here}", ""))
    image = f"conformance/{script.stem.replace('_', '-')}:dev"
    command = ["python", script.name.lstrip("/")]
    images[image] = {"context": str(here / "models"), "command": command}
    return _custom(deployment, image)


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
