"""A transformer: millimetres in, centimetres to the predictor, names of species out."""

from __future__ import annotations

import argparse
from typing import Any

import kserve

SPECIES = ("setosa", "versicolor", "virginica")


class Millimetres(kserve.Model):  # type: ignore[misc] # the SDK is untyped
    """Stands before a model of KServe's first protocol; `predict` is the SDK's, which calls it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True

    def preprocess(
        self, payload: dict[str, Any], headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Return the rows in the unit that the model was trained on."""
        return {"instances": [[value / 10 for value in row] for row in payload["instances"]]}

    def postprocess(
        self, result: dict[str, Any], headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Return a name for each number."""
        return {"predictions": [SPECIES[int(label)] for label in result["predictions"]]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
    args, _ = parser.parse_known_args()
    # On a cluster and here the controller says where the predictor is: --predictor_host.
    kserve.ModelServer().start([Millimetres(args.model_name)])
