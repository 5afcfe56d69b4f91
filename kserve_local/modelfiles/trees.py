"""XGBoost and LightGBM boosters: version and number of features, read off their files.

XGBoost writes JSON, UBJSON or, up to 3.0, a binary format of its own; LightGBM writes text. Of long
files only both ends are looked at, which hold what is asked for.

Source: XGBoost's model schema (`learner.learner_model_param.num_feature`, `version`); LightGBM's
`GBDT::SaveModelToString`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_END = 1 << 20
_JSON_FEATURES = re.compile(rb'"num_feature"\s*:\s*"(\d+)"')
_JSON_VERSION = re.compile(rb'"version"\s*:\s*\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]')
_UBJ_FEATURES = re.compile(rb"num_featureS(?:L.{8}|l.{4}|I.{2}|[iU].)(\d+)", re.DOTALL)
_UBJ_VERSION = re.compile(rb"version\[#(?:L.{7}|l.{3}|I.|[iU])\x03i(.)i(.)i(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Booster:
    """What a booster's file says of it.

    Args:
        form: `json`, `ubj`, `binary` or `text`.
        version: Of the library that wrote it, empty if it does not say; LightGBM's is `v4`.
    """

    form: str
    version: str = ""
    features: int | None = None


def xgboost(path: Path) -> Booster | None:
    """Return what an XGBoost model says, None if the file is none."""
    head, tail = _ends(path)
    if re.match(rb'\s*\{\s*"(learner|version)"', head) and b'"learner' in head + tail:
        return _booster("json", head + tail, _JSON_VERSION, _JSON_FEATURES, digits=True)
    if re.match(rb"\{(?:L.{7}|l.{3}|I.|[iU])\x07(learner|version)", head, re.DOTALL):
        return _booster("ubj", head + tail, _UBJ_VERSION, _UBJ_FEATURES, digits=False)
    return Booster("binary") if head.startswith((b"binf", b"bs64")) else None


def _booster(
    form: str,
    text: bytes,
    version: re.Pattern[bytes],
    features: re.Pattern[bytes],
    *,
    digits: bool,
) -> Booster:
    """Return what two patterns find; `digits`: numbers are texts, else bytes."""
    written = list(version.finditer(text))
    parts = written[-1].groups() if written else ()
    numbers = ".".join(p.decode() if digits else str(p[0]) for p in parts)
    counts = [int(m[1]) for m in features.finditer(text)]
    # Trees say it, too, in old versions as zero.
    return Booster(form, numbers, max(counts, default=0) or None)


def lightgbm(path: Path) -> Booster | None:
    """Return what a LightGBM model says, None if the file is none."""
    head, _ = _ends(path)
    if not re.match(rb"tree\r?\nversion=", head):
        return None
    version = re.search(rb"^version=(\S+)", head, re.MULTILINE)
    last = re.search(rb"^max_feature_idx=(\d+)", head, re.MULTILINE)
    return Booster(
        "text", version[1].decode() if version else "", int(last[1]) + 1 if last else None
    )


def _ends(path: Path) -> tuple[bytes, bytes]:
    with path.open("rb") as file:
        head = file.read(_END)
        file.seek(max(len(head), path.stat().st_size - _END))
        return head, file.read(_END)
