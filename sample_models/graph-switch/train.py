"""Train the two iris classifiers that this sample's graph chooses from. Seeded."""

from __future__ import annotations

from pathlib import Path

import joblib
from sklearn import datasets, svm, tree


def main() -> None:
    """Write `model/svc/model.joblib` and `model/tree/model.joblib` beside this file."""
    iris = datasets.load_iris()
    for name, classifier in (
        ("svc", svm.SVC(gamma="scale", random_state=0)),
        ("tree", tree.DecisionTreeClassifier(max_depth=3, random_state=0)),
    ):
        folder = Path(__file__).parent / "model" / name
        folder.mkdir(parents=True, exist_ok=True)
        joblib.dump(classifier.fit(iris.data, iris.target), folder / "model.joblib")
        print(f"wrote {folder / 'model.joblib'}")


if __name__ == "__main__":
    main()
