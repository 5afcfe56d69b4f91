"""A LightGBM booster as a served model, FP64 out.

Tables are put in the order of the model's feature names. Trees are walked row by row, so waiting
requests share a call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm

from modelserver.errors import LoadError
from modelserver.framework import FrameworkModel
from modelserver.repository import one_model_file

EXTENSIONS = (".bst",)


class LightGBMModel(FrameworkModel):
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
            self._booster = lightgbm.Booster(model_file=str(path))
        except Exception as error:
            raise LoadError(
                f"model file {path} could not be loaded: {type(error).__name__}: {error}"
            ) from error
        self.ready = True
        return True

    def columns(self) -> list[str]:
        return list(self._booster.feature_name())

    def call(self, x: Any) -> Any:
        return self._booster.predict(x, num_threads=self._threads)
