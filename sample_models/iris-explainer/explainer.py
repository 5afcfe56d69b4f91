"""An explainer: which measurement a prediction hangs on, found by asking the predictor again."""

from __future__ import annotations

import argparse
from typing import Any

import kserve

MEASUREMENTS = ("sepal_length", "sepal_width", "petal_length", "petal_width")
AVERAGE = (5.8, 3.1, 3.8, 1.2)
"""Of all irises."""


class Occlusion(kserve.Model):  # type: ignore[misc] # the SDK is untyped
    """Replaces one measurement after the other by the average flower's."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True

    async def explain(
        self, payload: dict[str, Any], headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Answer, for each row, the measurements without which the prediction is another."""
        rows = payload["instances"]
        asked = [
            [average if at == hidden else value for at, value in enumerate(row)]
            for row in rows
            for hidden, average in enumerate((None, *AVERAGE), start=-1)
        ]
        # `predict` is the SDK's: it calls the predictor, past any transformer.
        answer = await self.predict({"instances": asked}, headers)
        labels = answer["predictions"]
        explanations = []
        for start in range(0, len(labels), 1 + len(MEASUREMENTS)):
            label, *without = labels[start : start + 1 + len(MEASUREMENTS)]
            decisive = [m for m, o in zip(MEASUREMENTS, without, strict=True) if o != label]
            explanations.append({"prediction": label, "decisive": decisive})
        return {"explanations": explanations}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
    args, _ = parser.parse_known_args()
    # On a cluster and here the controller says where the predictor is: --predictor_host.
    kserve.ModelServer().start([Occlusion(args.model_name)])
