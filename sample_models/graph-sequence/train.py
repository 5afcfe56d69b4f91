"""Train two models: inches to centimetres, and centimetres to the iris' kind. Seeded."""

from __future__ import annotations

from pathlib import Path

import joblib
from sklearn import datasets, linear_model, svm


def main() -> None:
    """Write `model/centimetres` and `model/classifier` beside this file."""
    iris = datasets.load_iris()
    centimetres = linear_model.LinearRegression().fit(iris.data / 2.54, iris.data)
    classifier = svm.SVC(gamma="scale", random_state=0).fit(iris.data, iris.target)
    for name, model in (("centimetres", centimetres), ("classifier", classifier)):
        folder = Path(__file__).parent / "model" / name
        folder.mkdir(parents=True, exist_ok=True)
        joblib.dump(model, folder / "model.joblib")
        print(f"wrote {folder / 'model.joblib'}")


if __name__ == "__main__":
    main()
