"""The stand-ins of KServe's own test models, served from their `gs://` and `s3://` URIs offline.

Built by `$KSERVE_LOCAL_SHARED/mirror/build.py`, else `../shared`, with this interpreter's
libraries; every answer is what its MANIFEST.json says. `storage.mirrors` is the only way there is:
`storage.offline` is on.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.project import ROOT, Project, project

SHARED = Path(os.environ.get("KSERVE_LOCAL_SHARED") or ROOT.parent / "shared")
ROWS = [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]
V1 = {"instances": ROWS}
V2 = {"inputs": [{"name": "rows", "shape": [2, 4], "datatype": "FP32", "data": ROWS}]}
EXAMPLES = "gs://kfserving-examples/models"
HOUSE = {
    "MSZoning": "RL",
    "LotArea": 8450,
    "LotShape": "Reg",
    "Utilities": "AllPub",
    "YrSold": 2008,
    "Neighborhood": "CollgCr",
    "OverallQual": 7,
    "YearBuilt": 2003,
    "SaleType": "WD",
    "GarageArea": 548,
}
FRAME = {
    "parameters": {"content_type": "pd"},
    "inputs": [
        {
            "name": name,
            "shape": [1],
            "datatype": "INT32" if isinstance(value, int) else "BYTES",
            "data": [value],
        }
        for name, value in HOUSE.items()
    ],
}
NEWS = {"instances": ["Thelema: the will of a god, the law of a religion, the word of sin"]}
# A row for each column, as KServe's own test has it: all but one value of each row is missing.
FLOWER = [{"sepal_length_(cm)": 5.1}, {"sepal_width_(cm)": 3.5}, {"petal_length_(cm)": 1.4}]
FLOWERS = {"instances": [[*FLOWER, {"petal_width_(cm)": 0.2}]]}


@dataclass(frozen=True)
class Served:
    """One InferenceService: its model, and what it is asked. V2 when the body is V2."""

    format: str
    uri: str
    body: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    # What the model calls itself, if not as its service.
    name: str = ""


MLSERVER = {"protocolVersion": "v2", "runtime": "kserve-mlserver"}
SERVED = {
    "sk": Served("sklearn", f"{EXAMPLES}/sklearn/1.0/model", V1),
    "sk-s3": Served("sklearn", "s3://example-models/sklearn", V1),
    "sk-v2": Served(
        "sklearn",
        f"{EXAMPLES}/sklearn/1.0/model",
        V2,
        {"protocolVersion": "v2", "runtime": "kserve-sklearnserver"},
    ),
    "sk-mlserver": Served("sklearn", f"{EXAMPLES}/sklearn/1.0/model", V2, MLSERVER),
    "sk-settings": Served(
        "sklearn", "gs://seldon-models/sklearn/mms/lr_model", V2, MLSERVER, "lr_model"
    ),
    "sk-mixed": Served(
        "sklearn",
        f"{EXAMPLES}/sklearn/1.3/mixedtype/",
        FRAME,
        {"protocolVersion": "v2", "runtime": "kserve-sklearnserver"},
    ),
    "sk-news": Served(
        "sklearn",
        f"{EXAMPLES}/sklearn/newsgroup/model.joblib",
        NEWS,
        {"args": ["--workers=2"]},
    ),
    "xgb": Served("xgboost", f"{EXAMPLES}/xgboost/1.5/model", V1),
    "xgb-file": Served(
        "xgboost",
        f"{EXAMPLES}/xgboost/iris/model.bst",
        V2,
        {"protocolVersion": "v2", "runtime": "kserve-xgbserver"},
    ),
    "xgb-mlserver": Served("xgboost", f"{EXAMPLES}/xgboost/iris", V2, MLSERVER),
    "lgb": Served("lightgbm", f"{EXAMPLES}/lightgbm/iris", FLOWERS),
    "lgb-v2": Served(
        "lightgbm",
        f"{EXAMPLES}/lightgbm/v2/iris",
        V2,
        {"protocolVersion": "v2", "runtime": "kserve-lgbserver"},
    ),
    "lgb-mlserver": Served("lightgbm", f"{EXAMPLES}/lightgbm/v2/iris", V2, MLSERVER),
}


def promised(uri: str) -> str:
    """Return what the manifest says that a model answers."""
    entries = json.loads((SHARED / "mirror" / "MANIFEST.json").read_text())["entries"]
    (found,) = [e for e in entries if e["uri"] == uri.rstrip("/").removesuffix("/model.bst")]
    return str(found["asserts"])


def doubles(text: str) -> list[float]:
    """Return the numbers with many digits in a text."""
    return [float(n) for n in re.findall(r"\d+\.\d{6,}(?:e-?\d+)?", text)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    build = SHARED / "mirror" / "build.py"
    assert build.is_file(), f"{build} is missing; set KSERVE_LOCAL_SHARED"
    folder = tmp_path_factory.mktemp("mirror")
    models = folder / "models"
    command = [sys.executable, str(build), str(models), "--only", "sklearn,xgboost,lightgbm"]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    with project(folder / "p", env={"XDG_CACHE_HOME": str(folder / "cache")}) as p:
        mirrors = {f"{scheme}://": f"{models}/{scheme}/" for scheme in ("gs", "s3")}
        settings = {"storage": {"offline": True, "mirrors": mirrors}}
        (p.folder / "kserve-local.yaml").write_text(yaml.safe_dump(settings))
        services = [
            {
                "apiVersion": "serving.kserve.io/v1beta1",
                "kind": "InferenceService",
                "metadata": {"name": name},
                "spec": {
                    "predictor": {
                        "model": {
                            "modelFormat": {"name": one.format},
                            "storageUri": one.uri,
                            **one.model,
                        }
                    }
                },
            }
            for name, one in SERVED.items()
        ]
        (p.folder / "services.yaml").write_text(yaml.safe_dump_all(services))
        p.up()
        yield p


def ask(p: Project, name: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    body = SERVED[name].body if body is None else body
    model = SERVED[name].name or name
    path = f"/v2/models/{model}/infer" if "inputs" in body else f"/v1/models/{model}:predict"
    return p.call(f"/serving/default/{name}{path}", body)


@pytest.mark.parametrize("name", [n for n, s in SERVED.items() if s.body in (V1, V2)])
def test_iris_rows(served: Project, name: str) -> None:
    """Both flowers are of class 1, or the very doubles that KServe's test compares."""
    said = promised(SERVED[name].uri)
    status, answer = ask(served, name)
    assert status == 200, answer
    data = answer["predictions"] if "predictions" in answer else answer["outputs"][0]["data"]
    if "doubles" in said:
        assert data == doubles(said)
        assert len(data) == 6
    else:
        assert "[1, 1]" in said
        assert data == [1, 1]


def test_a_frame_of_mixed_columns(served: Project) -> None:
    """To the last digit; a row of four numbers is an error of the model."""
    status, answer = ask(served, "sk-mixed")
    assert (status, answer["outputs"][0]["data"]) == (
        200,
        doubles(promised(SERVED["sk-mixed"].uri)),
    )
    assert ask(served, "sk-mixed", {"instances": [[1, 2, 3, 4]]})[0] == 500


def test_text_by_two_workers(served: Project) -> None:
    assert "[19]" in promised(SERVED["sk-news"].uri)
    assert ask(served, "sk-news") == (200, {"predictions": [19]})


def test_named_columns(served: Project) -> None:
    """The first class leads, also when a column is missing."""
    assert "argmax of the first row is 0" in promised(SERVED["lgb"].uri)
    for body in (FLOWERS, {"instances": [FLOWER]}):
        status, answer = ask(served, "lgb", body)
        assert status == 200, answer
        scores = answer["predictions"][0]
        assert max(scores) == scores[0]
