"""What a pickle tells of an estimator: class, columns, the scikit-learn that saved it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from kserve_local.modelfiles.pickles import Contents, Made

_TEXT = ("sklearn.feature_extraction.text.",)
_KNOWN = frozenset(
    {
        "sklearn", "numpy", "scipy", "joblib", "pandas", "builtins", "__builtin__", "collections",
        "copyreg", "copy_reg", "functools", "operator", "_codecs", "datetime", "threading",
        "decimal", "re", "types", "math", "random", "itertools", "uuid", "pathlib", "enum",
    }
)  # fmt: skip
_INNER = ("best_estimator_", "estimator_", "estimator", "base_estimator")
_ESTIMATORS = re.compile(r"(sklearn|xgboost|lightgbm|catboost|imblearn)\.")
_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class Estimator:
    """An estimator in a pickle.

    Args:
        kind: `sklearn.svm._classes.SVC`; `name`: `SVC`.
        version: Of the scikit-learn that saved it, empty if the pickle does not say.
        text: Whether its first step reads texts.
    """

    kind: str
    version: str
    features: int | None
    text: bool
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.kind.rpartition(".")[2]


def describe(contents: Contents) -> Estimator | None:
    """Return the estimator that a pickle makes, None if it makes something else."""
    top = contents.top
    version = next(iter(contents.versions), "")
    if not isinstance(top, Made):
        if contents.complete or not version:
            return None
        # Too long to be looked at whole; that scikit-learn saved it is certain.
        return Estimator("scikit-learn estimator", version, None, False, ())
    is_one = version or _ESTIMATORS.match(top.kind) or top.attribute("n_features_in_") is not None
    if not is_one:
        return None
    return Estimator(
        top.kind, version, _features(top, 0), _reads_text(top, 0), tuple(_strangers(contents))
    )


def _strangers(contents: Contents) -> list[str]:
    """Return a warning for each class that a server would have to import from elsewhere."""
    found: dict[str, str] = {}
    for kind in contents.kinds:
        found.setdefault(kind.partition(".")[0], kind)
    return [
        f"loading it needs {kind}, and the server has no module {root}"
        if root == "__main__"
        else f"loading it needs {kind}: the runtime needs the package of {root}"
        for root, kind in found.items()
        if root not in _KNOWN
    ]


def _features(made: Any, depth: int) -> int | None:
    if not isinstance(made, Made) or depth > _DEEPEST:
        return None
    count = made.attribute("n_features_in_")
    if isinstance(count, int):
        return count
    for step in _steps(made):
        # A step without columns of its own, like one that passes all, says nothing.
        if (count := _features(step, depth + 1)) is not None:
            return count
        if _reads_text(step, depth + 1):
            return None
    inner = (made.attribute(name) for name in _INNER)
    return next((n for i in inner if (n := _features(i, depth + 1)) is not None), None)


def _reads_text(made: Any, depth: int) -> bool:
    if not isinstance(made, Made) or depth > _DEEPEST:
        return False
    if made.kind.startswith(_TEXT):
        return True
    steps = _steps(made)
    first = steps[0] if steps else made.attribute("best_estimator_")
    return _reads_text(first, depth + 1)


def _steps(made: Made) -> list[Any]:
    """Return the steps of a pipeline, empty for other estimators."""
    steps = made.attribute("steps")
    if not isinstance(steps, list):
        return []
    return [s[1] for s in steps if isinstance(s, tuple | list) and len(s) == 2]
