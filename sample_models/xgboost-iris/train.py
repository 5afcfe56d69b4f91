"""Train the XGBoost sample on iris. Seeded."""

from __future__ import annotations

from pathlib import Path

import xgboost
from sklearn import datasets


def main() -> None:
    """Write `model/model.json` beside this file."""
    iris = datasets.load_iris()
    booster = xgboost.train(
        {"objective": "multi:softmax", "num_class": 3, "max_depth": 3, "seed": 0, "nthread": 1},
        xgboost.DMatrix(iris.data, label=iris.target),
        num_boost_round=10,
    )
    folder = Path(__file__).parent / "model"
    folder.mkdir(exist_ok=True)
    booster.save_model(folder / "model.json")
    print(f"wrote {folder / 'model.json'}")


if __name__ == "__main__":
    main()
