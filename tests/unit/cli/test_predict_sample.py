"""The body that `predict` makes when it is given none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kserve_local import settings
from kserve_local.cli import predict_sample
from kserve_local.cli.predict_sample import described, find
from kserve_local.errors import UsageError

INPUTS = [
    {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
    {"name": "n", "datatype": "INT64", "shape": ["-1"]},
    {"name": "t", "datatype": "BYTES", "shape": [-1, 1]},
    {"name": "b", "datatype": "BOOL", "shape": []},
]


def answering(body: Any, status: int = 200) -> predict_sample.Get:
    def get(path: str) -> tuple[int, bytes]:
        assert path == "/v2/models/a%2Fb"
        return status, body if isinstance(body, bytes) else json.dumps(body).encode()

    return get


def sample(folder: Path, get: predict_sample.Get, protocol: str = "") -> predict_sample.Sample:
    return find(settings.load(folder), "iris", "default", "a/b", protocol, get)


def test_inputs_become_zeros_and_empty_texts_of_their_shapes(tmp_path: Path) -> None:
    found = sample(tmp_path, answering({"inputs": INPUTS}))
    assert json.loads(found.body)["inputs"] == [
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.0, 0.0]},
        {"name": "n", "shape": [1], "datatype": "INT64", "data": [0]},
        {"name": "t", "shape": [1, 1], "datatype": "BYTES", "data": [""]},
        {"name": "b", "shape": [], "datatype": "BOOL", "data": [False]},
    ]
    assert found.data.encode() == found.body
    assert found.told().startswith('sent: {"inputs": [{"name": "x"')
    assert found.told().endswith("(made from the model's metadata)")


def test_v1_gets_one_instance(tmp_path: Path) -> None:
    one = sample(tmp_path, answering({"inputs": INPUTS[:1]}), "v1")
    assert json.loads(one.body) == {"instances": [[0.0, 0.0]]}
    several = sample(tmp_path, answering({"inputs": INPUTS}), "v1")
    assert json.loads(several.body)["instances"] == [
        {"x": [0.0, 0.0], "n": 0, "t": [""], "b": False}
    ]


NO_HELP = [
    ({"inputs": []}, 200),
    ({"inputs": None}, 200),
    ({"inputs": [{"name": "x"}]}, 200),
    ({"inputs": [{"name": "x", "datatype": "FP32", "shape": ["n"]}]}, 200),
    ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [10_000, 10_000]}]}, 200),
    ({"name": "x"}, 200),
    ([], 200),
    (b"<html>", 200),
    ({"inputs": INPUTS}, 404),
]


@pytest.mark.parametrize(("body", "status"), NO_HELP)
def test_metadata_of_no_help_is_none(body: Any, status: int) -> None:
    assert described(answering(body, status), "a/b") == []


def test_the_projects_request_is_sent_where_the_model_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text('{"instances": [[1]]}')
    found = sample(tmp_path, answering({"inputs": []}))
    assert found.body == b'{"instances": [[1]]}'
    assert found.data == f"@{tmp_path / 'request.json'}"
    assert found.told() == 'sent: {"instances": [[1]]} (from request.json)'


def test_a_long_body_is_told_in_short(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text(json.dumps({"instances": [list(range(500))]}))
    told = sample(tmp_path, answering({"inputs": []})).told()
    assert len(told) < 220
    assert "... (from request.json)" in told


def test_with_neither_it_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        sample(tmp_path, answering({"inputs": []}))
    assert "iris does not describe its inputs" in caught.value.message
    assert "(request.json)" in caught.value.message
    assert "kserve-local predict iris @request.json" in caught.value.hint


@pytest.mark.parametrize(
    ("body", "made"),
    [
        (
            b'{"instances": [[1, 2], [3, 4.5]]}',
            {"name": "input-0", "shape": [2, 2], "datatype": "FP64", "data": [1, 2, 3, 4.5]},
        ),
        (b'{"instances": [[1, 2], [3]]}', None),
        (b'{"instances": ["text"]}', None),
        (b'{"instances": []}', None),
        (b'{"inputs": []}', None),
        (b"no JSON", None),
    ],
)
def test_rows_of_a_v1_sample_are_a_v2_tensor(body: bytes, made: dict[str, Any] | None) -> None:
    found = predict_sample.as_v2(body)
    assert (None if found is None else json.loads(found)["inputs"][0]) == made
