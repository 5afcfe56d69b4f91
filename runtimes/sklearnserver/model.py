"""A scikit-learn estimator as a served model: `predict`, or with PREDICT_PROBA=true
`predict_proba`.

Requests share calls only for estimators known to compute each row by itself in the same way
whatever its company; linear models, for one, go through a matrix product whose last bits depend on
the number of rows.
"""

from __future__ import annotations

import os
from typing import Any

from modelserver.errors import LoadError
from modelserver.framework import FrameworkModel
from modelserver.repository import one_model_file

EXTENSIONS = (".joblib", ".pkl", ".pickle")

# Row by row by construction: libsvm's loop, tree walks, element-wise scaling.
_ROWWISE = frozenset(
    {
        "SVC", "SVR", "NuSVC", "NuSVR", "OneClassSVM",
        "DecisionTreeClassifier", "DecisionTreeRegressor",
        "ExtraTreeClassifier", "ExtraTreeRegressor",
        "RandomForestClassifier", "RandomForestRegressor",
        "ExtraTreesClassifier", "ExtraTreesRegressor",
        "GradientBoostingClassifier", "GradientBoostingRegressor",
        "HistGradientBoostingClassifier", "HistGradientBoostingRegressor",
        "StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler", "SimpleImputer",
    }
)  # fmt: skip


class SKLearnModel(FrameworkModel):
    """The estimator in the only model file of a folder."""

    def load(self) -> bool:
        """Unpickle the estimator and choose its method.

        Raises:
            LoadError: No model file, several, or one that cannot be read.
        """
        import joblib

        path = one_model_file(self.folder, EXTENSIONS)
        try:
            self._estimator = joblib.load(path)
        except Exception as error:
            raise LoadError(
                f"model file {path} could not be loaded: {type(error).__name__}: {error}"
            ) from error
        proba = os.environ.get("PREDICT_PROBA", "false").lower() == "true"
        use_proba = proba and hasattr(self._estimator, "predict_proba")
        self._method = self._estimator.predict_proba if use_proba else self._estimator.predict
        self.batchable = is_rowwise(self._estimator)
        self.ready = True
        return True

    def call(self, x: Any) -> Any:
        return self._method(x)


def is_rowwise(estimator: Any) -> bool:
    """Return whether the estimator is one of those that compute rows independently, bit for bit."""
    kind = type(estimator)
    if not kind.__module__.startswith("sklearn."):
        return False
    if kind.__name__ == "Pipeline":
        return all(step == "passthrough" or is_rowwise(step) for _, step in estimator.steps)
    if getattr(estimator, "n_jobs", None) not in (None, 1):
        # Trees summed by several threads add up in any order.
        return False
    return kind.__name__ in _ROWWISE
