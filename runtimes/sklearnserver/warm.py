"""Warm-up for a zygote of sklearnserver replicas, see `modelserver.warm`."""

from __future__ import annotations

import joblib  # noqa: F401  imported for the forked servers
import numpy as np
import sklearn.ensemble
import sklearn.linear_model
import sklearn.pipeline
import sklearn.preprocessing
import sklearn.svm
import sklearn.tree

import sklearnserver.server  # noqa: F401  imported for the forked servers
from modelserver import warm as modelserver_warm


def warm() -> None:
    """Import scikit-learn's usual parts, fit and predict once, run a throw-away event loop."""
    x = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]] * 2)
    y = np.array([0, 1, 0, 1] * 2)
    pipeline = sklearn.pipeline.make_pipeline(
        sklearn.preprocessing.StandardScaler(), sklearn.svm.SVC()
    )
    pipeline.fit(x, y).predict(x[:1])
    sklearn.tree.DecisionTreeClassifier().fit(x, y).predict(x[:1])
    sklearn.linear_model.LogisticRegression().fit(x, y).predict_proba(x[:1])
    modelserver_warm.warm()
