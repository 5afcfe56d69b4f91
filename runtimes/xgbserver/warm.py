"""Warm-up for a zygote of xgbserver replicas, see `modelserver.warm`."""

from __future__ import annotations

import numpy as np
import xgboost

import xgbserver.server  # noqa: F401  imported for the forked servers
from modelserver import warm as modelserver_warm


def warm() -> None:
    """Import XGBoost, train and predict once on one thread, run a throw-away event loop."""
    x = np.array([[0.0, 0.0], [1.0, 1.0]] * 4)
    y = np.array([0.0, 1.0] * 4)
    booster = xgboost.train(
        {"nthread": 1, "max_depth": 1, "verbosity": 0},
        xgboost.DMatrix(x, y, nthread=1),
        num_boost_round=1,
    )
    booster.predict(xgboost.DMatrix(x[:1], nthread=1))
    modelserver_warm.warm()
