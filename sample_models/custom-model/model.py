"""A custom predictor: a `kserve.Model` that names the flower instead of numbering it."""

from __future__ import annotations

import argparse
from typing import Any

import kserve

SPECIES = ("setosa", "versicolor", "virginica")


class FlowerModel(kserve.Model):  # type: ignore[misc] # the SDK is untyped
    """Tells iris species apart by two thresholds; needs no model file."""

    def load(self) -> bool:
        """Nothing to load; ready at once."""
        self.ready = True
        return self.ready

    def predict(
        self, payload: dict[str, Any], headers: dict[str, str] | None = None
    ) -> dict[str, list[str]]:
        """Answer one species name per row of `instances`, rows being iris measurements."""
        return {"predictions": [self._species(row) for row in payload["instances"]]}

    @staticmethod
    def _species(row: list[float]) -> str:
        petal_length, petal_width = row[2], row[3]
        if petal_length < 2.5:
            return SPECIES[0]
        return SPECIES[1] if petal_width < 1.7 else SPECIES[2]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
    args, _ = parser.parse_known_args()
    model = FlowerModel(args.model_name)
    model.load()
    kserve.ModelServer().start([model])
