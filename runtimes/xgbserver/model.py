"""An XGBoost booster as a served model: its prediction on a DMatrix, FP32 out.

A booster of trees walks each row by itself, so waiting requests share a DMatrix (whose making costs
far more than one row's prediction).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xgboost

from modelserver.errors import LoadError
from modelserver.framework import FrameworkModel
from modelserver.repository import one_model_file

EXTENSIONS = (".bst", ".json", ".ubj")


class XGBoostModel(FrameworkModel):
    """The booster in the only model file of a folder.

    Args:
        threads: `--nthread`.
    """

    batchable = True

    def __init__(self, name: str, folder: Path, *, threads: int = 1) -> None:
        super().__init__(name, folder)
        self._threads = threads

    def load(self) -> bool:
        """Read the booster.

        Raises:
            LoadError: No model file, several, or one that cannot be read.
        """
        path = one_model_file(self.folder, EXTENSIONS)
        try:
            self._booster = xgboost.Booster(params={"nthread": self._threads}, model_file=str(path))
        except Exception as error:
            raise LoadError(
                f"model file {path} could not be loaded: {type(error).__name__}: {error}"
            ) from error
        self.ready = True
        return True

    def call(self, x: Any) -> Any:
        return self._booster.predict(xgboost.DMatrix(x, nthread=self._threads))
