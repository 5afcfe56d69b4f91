"""Warm-up for a zygote of lgbserver replicas, see `modelserver.warm`."""

from __future__ import annotations

import lightgbm
import numpy as np

import lgbserver.server  # noqa: F401  imported for the forked servers
from modelserver import warm as modelserver_warm


def warm() -> None:
    """Import LightGBM, train and predict once on one thread, run a throw-away event loop."""
    x = np.array([[0.0, 0.0], [1.0, 1.0]] * 20)
    y = np.array([0.0, 1.0] * 20)
    booster = lightgbm.train(
        {"num_threads": 1, "verbose": -1, "min_data_in_leaf": 1},
        lightgbm.Dataset(x, y),
        num_boost_round=1,
    )
    booster.predict(x[:1], num_threads=1)
    modelserver_warm.warm()
