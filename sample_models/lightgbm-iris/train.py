"""Train the LightGBM sample on iris. Seeded."""

from __future__ import annotations

from pathlib import Path

import lightgbm
from sklearn import datasets


def main() -> None:
    """Write `model/model.bst` beside this file."""
    iris = datasets.load_iris()
    params = {
        "objective": "multiclass",
        "num_class": 3,
        "num_leaves": 7,
        "seed": 0,
        "deterministic": True,
        "num_threads": 1,
        "verbose": -1,
    }
    booster = lightgbm.train(params, lightgbm.Dataset(iris.data, iris.target), num_boost_round=10)
    folder = Path(__file__).parent / "model"
    folder.mkdir(exist_ok=True)
    booster.save_model(folder / "model.bst")
    print(f"wrote {folder / 'model.bst'}")


if __name__ == "__main__":
    main()
