"""The project that `saves` edits: its files as text made from a few numbers.

Three services: `counts`, a custom predictor whose answer holds a number of every place that is
edited; `shift`, a transformer before a model that stays; `iris`, a model file that is rewritten.
"""

from __future__ import annotations

import io
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import sklearn.dummy

from tests.soak.steady import Call

COUNTS, SHIFT, IRIS, EXTRA = "counts", "shift", "iris", "extra"
BODY = json.dumps({"instances": [[6.8, 2.8, 4.8, 1.4]]}).encode()
CALLS = {name: Call(f"/serving/default/{name}/v1/models/{name}:predict", BODY)
         for name in (COUNTS, SHIFT, IRIS)}  # fmt: skip
IMAGES = {
    "example/counts:dev": {"context": ".", "command": ["python", "model.py"]},
    "example/shift:dev": {"context": ".", "command": ["python", "shift.py"]},
}
FIXED = 7
"""What the model behind the transformer answers."""
SERVER = """
if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
    args, _ = parser.parse_known_args()
"""
MODEL = """\
import argparse
import os

import kserve

import weights
import words


class Counts(kserve.Model):
    def load(self):
        self.weight = {weight}
        self.base = weights.base()
        self.ready = True
        return self.ready

    def predict(self, payload, headers=None):
        where = os.environ.get("PLACE", "")
        return {{
            "predictions": [{answer}, words.word(), self.weight, self.base, where, os.getpid()]
        }}

{server}    model = Counts(args.model_name)
    model.load()
    kserve.ModelServer().start([model])
"""
TRANSFORMER = """\
import argparse
import os

import kserve


class Shift(kserve.Model):
    def __init__(self, name):
        super().__init__(name)
        self.origin = {origin}
        self.ready = True

    def postprocess(self, result, headers=None):
        return {{"predictions": [*result["predictions"], {shift}, self.origin, os.getpid()]}}

{server}    kserve.ModelServer().start([Shift(args.model_name)])
"""


@dataclass(frozen=True, slots=True)
class World:
    """What the good files hold.

    Args:
        answer: Of the custom predictor's method.
        word: Of a helper that the method calls.
        weight: Set by `load()`.
        base: Of a helper that `load()` calls.
        place: An environment variable in the YAML.
        replicas: `minReplicas` of the custom predictor.
        shift: Of the transformer's method.
        origin: Set by the transformer's `__init__`.
        model: Of the model file.
        extra: Whether there is a fourth service.
    """

    answer: int = 0
    word: int = 0
    weight: int = 0
    base: int = 0
    place: int = 0
    replicas: int = 1
    shift: int = 0
    origin: int = 0
    model: int = 0
    extra: bool = False

    def files(self) -> dict[str, str]:
        """Return the text of every text file."""
        counts = _container("example/counts:dev", COUNTS)
        counts["env"] = [{"name": "PLACE", "value": f"place {self.place}"}]
        shift = _container("example/shift:dev", SHIFT)
        made = {
            "kserve-local.yaml": json.dumps({"images": IMAGES}, indent=1),
            "model.py": MODEL.format(weight=self.weight, answer=self.answer, server=SERVER),
            "words.py": f"def word():\n    return {self.word}\n",
            "weights.py": f"def base():\n    return {self.base}\n",
            "shift.py": TRANSFORMER.format(origin=self.origin, shift=self.shift, server=SERVER),
            "counts.yaml": _service(
                COUNTS, predictor={"minReplicas": self.replicas, "containers": [counts]}
            ),
            "shift.yaml": _service(
                SHIFT, predictor=_sklearn("./fixed"), transformer={"containers": [shift]}
            ),
            "iris.yaml": _service(IRIS, predictor=_sklearn("./model")),
        }
        if self.extra:
            made["extra.yaml"] = _service(EXTRA, predictor=_sklearn("./fixed"))
        return made

    def means(self, name: str, text: str) -> bool:
        """Whether an answer of a service is this world's, whichever process gave it."""
        said = predictions(text)
        if name == COUNTS:
            place = f"place {self.place}"
            return said[:-1] == [self.answer, self.word, self.weight, self.base, place]
        if name == SHIFT:
            return said[:-1] == [FIXED, self.shift, self.origin]
        return said == [self.model]


def predictions(text: str) -> list[Any]:
    """Return what an answer predicts, empty if it is none."""
    try:
        return list(json.loads(text)["predictions"])
    except (ValueError, KeyError, TypeError):
        return []


def model_bytes(number: int, padding: bytes) -> bytes:
    """Return a joblib file of a model that always answers a number; padded to be slow to write."""
    model = sklearn.dummy.DummyClassifier(strategy="constant", constant=number)
    model.fit([[0.0, 0.0, 0.0, 0.0]], [number])
    model.padding = padding
    into = io.BytesIO()
    joblib.dump(model, into)
    return into.getvalue()


def write(folder: Path, world: World, padding: bytes) -> None:
    """Write the whole project."""
    for name, number in (("model", world.model), ("fixed", FIXED)):
        (folder / name).mkdir()
        (folder / name / "model.joblib").write_bytes(model_bytes(number, padding))
    for name, text in world.files().items():
        (folder / name).write_text(text)


def put(path: Path, content: bytes) -> None:
    """Put a file in another's place, as most editors save."""
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.write_bytes(content)
    os.replace(fresh, path)


def overwrite(path: Path, content: bytes, *, pauses: int = 0, pause: float = 0.1) -> None:
    """Write into the file that is there, in so many pieces more than one."""
    size = len(content) // (pauses + 1) + 1
    with path.open("wb") as file:
        for at in range(0, len(content), size):
            if at:
                time.sleep(pause)
            file.write(content[at : at + size])
            file.flush()


def _container(image: str, name: str) -> dict[str, Any]:
    return {"name": "kserve-container", "image": image, "args": [f"--model_name={name}"]}


def _sklearn(uri: str) -> dict[str, Any]:
    return {"minReplicas": 1, "model": {"modelFormat": {"name": "sklearn"}, "storageUri": uri}}


def _service(name: str, **components: dict[str, Any]) -> str:
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": components,
    }
    return json.dumps(service, indent=1) + "\n"
