"""Every sample model, served as its README says and answering what its `expected.json` holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.project import IN_DOCKER, project, sample, wait_until

NAMES = [
    "sklearn-iris",
    "iris-standard",
    "xgboost-iris",
    "lightgbm-iris",
    "onnx-iris",
    "torch-iris",
    "custom-model",
    "iris-transformer",
    "iris-collocated",
    "iris-explainer",
    "graph-sequence",
    "graph-splitter",
    "graph-ensemble",
    "graph-switch",
]


def matches(expected: Any, got: Any) -> bool:
    """Whether `got` holds everything expected; numbers within 0.05 (seeded, but not to the bit)."""
    if isinstance(expected, dict):
        return isinstance(got, dict) and all(matches(v, got.get(k)) for k, v in expected.items())
    if isinstance(expected, list):
        return (
            isinstance(got, list)
            and len(got) == len(expected)
            and all(matches(e, g) for e, g in zip(expected, got, strict=True))
        )
    if isinstance(expected, float):
        return isinstance(got, (int, float)) and abs(expected - got) <= 0.05
    return bool(expected == got)


COLLOCATED = ("iris-collocated",)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_answers_as_expected(name: str, tmp_path: Path) -> None:
    folder = sample(name, tmp_path / name)
    with project(folder) as p:
        p.up()
        if name in COLLOCATED:
            # Knative asks the transformer's container alone whether it is ready, here as there.
            asked = ("predict", name, "@request.json")
            wait_until(lambda: p.run(*asked, check=None).returncode == 0, why="it answers")
            traced = p.json("predict", name, "@request.json", "--trace")["trace"]["hops"]
            # Nobody in a container reaches the gateway's socket.
            within = [] if IN_DOCKER else [("within", "localhost:8085", 200)]
            assert [(h["kind"], h.get("target", ""), h["status"]) for h in traced] == [
                ("component", "", 200), *within,
            ]  # fmt: skip
            assert len({h["pod"] for h in traced}) == 1
        answer = json.loads(p.run("predict", name, "@request.json").stdout)
        expected = json.loads((folder / "expected.json").read_text())
        assert matches(expected, answer)
        assert p.service(name)["ready"] is True
        explained = folder / "explained.json"
        if explained.exists():
            done = p.run("predict", name, "--explain", "@request.json")
            assert matches(json.loads(explained.read_text()), json.loads(done.stdout))
