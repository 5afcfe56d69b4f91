"""Train a classifier on iris and convert it to ONNX. Seeded."""

from __future__ import annotations

from pathlib import Path

from skl2onnx import to_onnx
from sklearn import datasets, linear_model


def main() -> None:
    """Write `model/model.onnx` beside this file: input `X` FP32 [n, 4], output `label`."""
    iris = datasets.load_iris()
    classifier = linear_model.LogisticRegression(max_iter=1000, random_state=0)
    classifier.fit(iris.data, iris.target)
    folder = Path(__file__).parent / "model"
    folder.mkdir(exist_ok=True)
    options = {id(classifier): {"zipmap": False}}
    converted = to_onnx(classifier, iris.data[:1].astype("float32"), options=options)
    (folder / "model.onnx").write_bytes(converted.SerializeToString())
    print(f"wrote {folder / 'model.onnx'}")


if __name__ == "__main__":
    main()
