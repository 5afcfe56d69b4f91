"""A new project for a model that was recognised: its name, its files, what is guessed. Pure.

The InferenceService is one that a cluster takes as it is, but for the local storageUri; what else a
cluster needs is said in its comments. What depends on the format is `starter_predictors`'.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from kserve_local.modelfiles.recognise import Recognised
from kserve_local.project.starter_predictors import PREDICTORS, Starter
from kserve_local.settings import CONFIG_FILE

MANIFEST = "inferenceservice.yaml"
REQUEST = "request.json"
_GENERIC = re.compile(
    r"(model|models|saved.?model|pytorch.?model|weights|estimator|clf|classifier|pipeline|main"
    r"|predictor|\d+)([-_.]?v?\d+)?\Z",
    re.IGNORECASE,
)
_LONGEST = 40


def name_for(model: Recognised, folder: Path) -> str:
    """Return a name for the service: what the file, else its folder, else the project is called."""
    if model.code is not None:
        words = [model.code.model, folder.name]
    else:
        parents = [model.path.parent.name, model.path.parent.parent.name]
        words = [model.path.stem if model.path.suffix else model.path.name, *parents, folder.name]
    safe = [dns_label(word) for word in words if word and not _GENERIC.match(word)]
    return next(filter(None, safe), "model")


def dns_label(text: str) -> str:
    """Return the text as a name that Kubernetes takes, empty if nothing of it is left."""
    clean = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return re.sub(r"^[^a-z]+", "", clean)[:_LONGEST].rstrip("-")


def plan(model: Recognised, folder: Path, name: str, extra_files: tuple[str, ...] = ()) -> Starter:
    """Return the project to write into `folder`.

    Args:
        extra_files: Files beside the model, relative to it, that belong to it.
    """
    starter = Starter(name, warnings=list(model.warnings))
    starter.said.append(f"format   {_format(model)}: {model.why}")
    predictor = PREDICTORS[model.format](model, folder, starter, extra_files)
    comments = [f"# {line}" if line else "#" for line in predictor.comments]
    starter.files[MANIFEST] = "\n".join(
        (
            *comments,
            "apiVersion: serving.kserve.io/v1beta1",
            "kind: InferenceService",
            "metadata:",
            f"  name: {name}",
            "spec:",
            "  predictor:",
            *(f"    {line}" for line in predictor.lines),
            "",
        )
    )
    starter.files[CONFIG_FILE] = "\n".join((*_CONFIG, *predictor.config, ""))
    starter.files[REQUEST] = json.dumps(predictor.request) + "\n"
    shape = predictor.guess or "of the shape that the model declares, filled with zeros"
    starter.said.append(f"request  {REQUEST}: {shape}")
    return starter


_CONFIG = (
    "# Settings of kserve-local; a cluster never sees this file, and all of it is optional.",
    "# auto: processes where an image has a program here, a container engine for the others.",
    "backend: auto",
)


def _format(model: Recognised) -> str:
    return f"{model.format} ({model.kind})" if model.kind else model.format
