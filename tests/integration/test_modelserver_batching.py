"""The proof that sharing calls changes no answer: every framework model that may share them,
hundreds of different requests in one event-loop turn, byte by byte the answers of each alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import pytest
import xgboost
from sklearn.base import BaseEstimator
from sklearn.datasets import load_iris
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, SVR
from sklearn.tree import DecisionTreeClassifier

from lgbserver.model import LightGBMModel
from modelserver.dataplane import DataPlane
from modelserver.framework import FrameworkModel
from modelserver.http import Server
from modelserver.rest import Rest
from sklearnserver.model import SKLearnModel
from xgbserver.model import XGBoostModel

X, Y = load_iris(return_X_y=True)
REQUESTS = 300


def sklearn_model(estimator: Any, folder: Path) -> SKLearnModel:
    joblib.dump(estimator.fit(X, Y), folder / "model.joblib")
    model = SKLearnModel("m", folder)
    model.load()
    return model


def xgboost_model(folder: Path, objective: str) -> XGBoostModel:
    parameters = {"objective": objective, "num_class": 3, "max_depth": 3, "nthread": 1}
    if objective.startswith("reg"):
        del parameters["num_class"]
    booster = xgboost.train(parameters, xgboost.DMatrix(X, Y), num_boost_round=5)
    booster.save_model(folder / "model.json")
    model = XGBoostModel("m", folder)
    model.load()
    return model


def lightgbm_model(folder: Path, objective: str) -> LightGBMModel:
    parameters = {"objective": objective, "num_class": 3, "verbose": -1, "num_threads": 1}
    if objective == "regression":
        del parameters["num_class"]
    booster = lightgbm.train(parameters, lightgbm.Dataset(X, Y), num_boost_round=5)
    booster.save_model(folder / "model.bst")
    model = LightGBMModel("m", folder)
    model.load()
    return model


SHARING: dict[str, Callable[[Path], FrameworkModel]] = {
    "SVC": lambda folder: sklearn_model(SVC(gamma=1.0), folder),
    "linear SVC, 3 classes": lambda folder: sklearn_model(SVC(kernel="linear"), folder),
    "SVR": lambda folder: sklearn_model(SVR(), folder),
    "tree": lambda folder: sklearn_model(DecisionTreeClassifier(random_state=0), folder),
    "forest": lambda folder: sklearn_model(RandomForestClassifier(10, random_state=0), folder),
    "forest of numbers": lambda folder: sklearn_model(
        RandomForestRegressor(10, random_state=0), folder
    ),
    "extra trees": lambda folder: sklearn_model(ExtraTreesClassifier(10, random_state=0), folder),
    "gradient boosting": lambda folder: sklearn_model(
        GradientBoostingClassifier(n_estimators=5, random_state=0), folder
    ),
    "histogram boosting": lambda folder: sklearn_model(
        HistGradientBoostingRegressor(max_iter=5, random_state=0), folder
    ),
    "scaled SVC": lambda folder: sklearn_model(make_pipeline(StandardScaler(), SVC()), folder),
    "xgboost classes": lambda folder: xgboost_model(folder, "multi:softprob"),
    "xgboost regression": lambda folder: xgboost_model(folder, "reg:squarederror"),
    "lightgbm classes": lambda folder: lightgbm_model(folder, "multiclass"),
    "lightgbm regression": lambda folder: lightgbm_model(folder, "regression"),
}


class Transport:
    """Takes one answer; `body` is done with what follows its head."""

    def __init__(self) -> None:
        self.body: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def write(self, data: bytes) -> None:
        self.body.set_result(data.partition(b"\r\n\r\n")[2])

    def close(self) -> None:
        pass


def requests() -> list[bytes]:
    """V1 and V2, one to four rows, FP32 and FP64, and some with the wrong number of features."""
    random = np.random.default_rng(7)
    made = []
    for i in range(REQUESTS):
        features = 3 if i % 29 == 28 else 4
        rows = random.uniform(0, 8, (int(random.integers(1, 5)), features)).tolist()
        if i % 3:
            datatype = "FP32" if i % 2 else "FP64"
            tensor = {"name": "x", "shape": [len(rows), features], "datatype": datatype}
            path, body = "/v2/models/m/infer", {"id": str(i), "inputs": [{**tensor, "data": rows}]}
        else:
            path, body = "/v1/models/m:predict", {"instances": rows}
        data = json.dumps(body).encode()
        made.append(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
    return made


async def answers(
    model: FrameworkModel, sent: list[bytes], *, together: bool
) -> tuple[list[bytes], int]:
    """Return the answers' bodies and the number of shared calls."""
    loop = asyncio.get_running_loop()
    # `true` also leaves out the trials, which would answer with the results alone.
    dataplane = DataPlane(loop, batching="true" if together else "false")
    dataplane.register([model])
    server = Server(Rest(dataplane, version="0"), loop)
    transports = []
    for request in sent:
        connection, transport = server.protocol(), Transport()
        connection.connection_made(transport)  # type: ignore[arg-type]  # a fake
        transports.append(transport)
        connection.data_received(request)
    async with asyncio.timeout(60):
        bodies = await asyncio.gather(*(transport.body for transport in transports))
    shared = dataplane.get("m").runner.shared_calls
    dataplane.get("m").runner.close()
    return bodies, shared


@pytest.mark.parametrize("make", SHARING.values(), ids=SHARING.keys())
async def test_shared_calls_answer_bit_for_bit_as_calls_alone(
    make: Callable[[Path], FrameworkModel], tmp_path: Path
) -> None:
    """Requests that cannot be computed fail alone, their neighbours do not notice."""
    model = make(tmp_path)
    assert model.batchable
    sent = requests()
    alone, none_shared = await answers(model, sent, together=False)
    together, shared = await answers(model, sent, together=True)
    assert none_shared == 0
    assert shared > 0
    assert together == alone
    assert sum(b'"error"' in body for body in alone) <= REQUESTS // 29
    assert len(set(alone)) > REQUESTS / 3


NOT_SHARING = {
    "matrix products": LinearRegression(),
    "probabilities of a linear model": LogisticRegression(max_iter=200),
    "somebody's function": make_pipeline(FunctionTransformer(), SVC()),
    "threads": RandomForestClassifier(5, n_jobs=2, random_state=0),
}


class OwnSVC(SVC):
    """A class of the user's: nothing is known about it."""


@pytest.mark.parametrize(
    "estimator", [*NOT_SHARING.values(), OwnSVC()], ids=[*NOT_SHARING.keys(), "own class"]
)
def test_models_not_known_to_be_rowwise_do_not_share(
    estimator: BaseEstimator, tmp_path: Path
) -> None:
    """Their answers might differ in the last bits with the company."""
    assert not sklearn_model(estimator, tmp_path).batchable


async def test_the_user_may_insist_or_forbid(tmp_path: Path) -> None:
    """`--enable_batching=true` takes any model of independent rows, `false` none."""
    model = sklearn_model(LinearRegression(), tmp_path)
    sent = requests()
    assert (await answers(model, sent, together=True))[1] > 0
    assert (await answers(model, sent, together=False))[1] == 0
