"""config.properties and the models it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelserver.errors import LoadError
from torchserver.modelstore import parse_properties, read_properties, setting, stored_models


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "model-store"
    folder.mkdir()
    for name in ("a.mar", "b.mar", "notes.txt"):
        (folder / name).touch()
    return folder


def snapshot(**models: object) -> dict[str, str]:
    return {"model_snapshot": json.dumps({"name": "startup.cfg", "models": models})}


def test_properties_are_javas() -> None:
    text = '# c\n! c\na=1\nb : 2\nc  3\n  d=x=y\nmodels={\\\n  "m": 1}\n\nempty=\n'
    assert parse_properties(text) == {
        "a": "1", "b": "2", "c": "3", "d": "x=y", "models": '{"m": 1}', "empty": "",
    }  # fmt: skip


def test_the_environment_wins_only_where_the_file_lets_it() -> None:
    env = {"TS_SERVICE_ENVELOPE": "kservev2"}
    assert setting({"service_envelope": "kserve"}, env, "service_envelope") == "kserve"
    allowed = {"service_envelope": "kserve", "enable_envvars_config": "true"}
    assert setting(allowed, env, "service_envelope") == "kservev2"
    assert setting(allowed, {}, "service_envelope") == "kserve"


def test_the_snapshot_names_models_and_their_default_version(store: Path) -> None:
    versions = {
        "1.0": {"marName": "a.mar"},
        "2.0": {"marName": "b.mar", "defaultVersion": True, "batchSize": 4},
    }
    (model,) = stored_models(snapshot(net=versions), {}, store)
    assert (model.name, model.path.name, model.version, model.batch_size) == (
        "net", "b.mar", "2.0", 4,
    )  # fmt: skip


def test_without_a_default_the_highest_version_counts(store: Path) -> None:
    versions = {"9.0": {"marName": "a.mar"}, "10.0": {"marName": "b.mar"}}
    (model,) = stored_models(snapshot(net=versions), {}, store)
    assert model.version == "10.0"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("all", [("", "a.mar"), ("", "b.mar")]),
        ("b.mar", [("", "b.mar")]),
        ("x=a.mar, b.mar", [("x", "a.mar"), ("", "b.mar")]),
    ],
)
def test_load_models_counts_where_there_is_no_snapshot(
    store: Path, text: str, found: list[tuple[str, str]]
) -> None:
    models = stored_models({"load_models": text}, {}, store)
    assert [(m.name, m.path.name) for m in models] == found


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({}, "names no model to load (model-store holds a.mar, b.mar)"),
        ({"load_models": "c.mar"}, "archive 'c.mar' is not in model-store; there: a.mar, b.mar"),
        ({"load_models": "../a.mar"}, "archive '../a.mar' is not in model-store"),
        ({"model_snapshot": "{"}, "model_snapshot cannot be read"),
        ({"model_snapshot": '{"models": {"net": {}}}'}, "model_snapshot cannot be read"),
        ({"model_snapshot": '{"models": {"net": {"1": {}}}}'}, "KeyError: 'marName'"),
    ],
)
def test_a_store_that_cannot_be_served_says_why(
    store: Path, properties: dict[str, str], words: str
) -> None:
    with pytest.raises(LoadError) as caught:
        stored_models(properties, {}, store)
    assert words in str(caught.value)


def test_a_plain_model_folder_gets_the_layout_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(LoadError) as caught:
        stored_models({}, {}, tmp_path / "model-store")
    assert "model-store/NAME.mar and config/config.properties" in str(caught.value)
    assert "kserve-local-torchserver" in str(caught.value)


def test_a_missing_configuration_shows_a_line_to_write(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="model_snapshot="):
        read_properties(tmp_path / "config.properties")
