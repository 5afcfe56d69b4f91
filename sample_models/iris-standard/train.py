"""Train the iris sample: a support-vector classifier, for Standard mode. Seeded."""

from __future__ import annotations

from pathlib import Path

import joblib
from sklearn import datasets, svm


def main() -> None:
    """Write `model/model.joblib` beside this file."""
    iris = datasets.load_iris()
    classifier = svm.SVC(gamma="scale", random_state=0).fit(iris.data, iris.target)
    folder = Path(__file__).parent / "model"
    folder.mkdir(exist_ok=True)
    joblib.dump(classifier, folder / "model.joblib")
    print(f"wrote {folder / 'model.joblib'}")


if __name__ == "__main__":
    main()
