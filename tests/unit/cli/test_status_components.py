"""Lines of components in the table of `status`."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.cli.status import _row
from kserve_local.cli.status_components import revisions_of, with_components


def part(component: str, state: str = "Ready", **more: Any) -> dict[str, Any]:
    revision = {
        "name": f"iris-{component}-00001", "component": component, "percent": 100,
        "replicas": 1, "pods": [f"pod-{component}"],
    }  # fmt: skip
    return {
        "component": component, "name": f"iris-{component}", "state": state, "reason": "",
        "message": "", "url": "http://x", "revisions": [revision], "memory": 0, "p95": 0.0,
        "restarts": 0, "lastRestart": "", **more,
    }  # fmt: skip


def service(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "name": "iris", "namespace": "default", "state": "Ready", "reason": "", "message": "",
        "component": "", "url": "http://x", "components": list(parts), "memory": 0, "p95": 0.0,
        "revisions": [r for p in parts for r in p["revisions"]],
        "gpus": [{"pod": "pod-predictor", "index": 0}], **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "wide", "labels"),
    [
        ([part("predictor")], True, ["iris"]),
        ([part("predictor", "Failed")], False, ["iris"]),
        ([part("predictor"), part("transformer")], False, ["iris"]),
        ([part("predictor"), part("transformer")], True, ["iris", "  predictor", "  transformer"]),
        (
            [part("predictor"), part("explainer", "Failed")],
            False,
            ["iris", "  predictor", "  explainer"],
        ),
    ],
)
def test_components_have_lines_where_they_are_told_apart(
    parts: list[dict[str, Any]], wide: bool, labels: list[str]
) -> None:
    lines = with_components([service(*parts)], wide=wide)
    assert [_row(line, "8080", False, "-")[0] for line in lines] == labels


def test_a_component_shows_its_own_address_gpus_and_failure() -> None:
    broken = part("transformer", "Failed", reason="RevisionFailed", message="boom")
    shown = service(part("predictor"), broken, component="transformer", **why("boom"))
    whole, predictor, transformer = with_components([shown], wide=True)
    assert [len(line["gpus"]) for line in (whole, predictor, transformer)] == [1, 1, 0]
    row = _row(transformer, "8080", False, "-")
    assert (row[1], row[3]) == ("False", "iris-transformer.default.localhost:8080")
    assert row[-1] == "RevisionFailed: boom"
    # On a line of its own the component says it; in one line for all, the line says whose it is.
    assert _row(whole, "8080", False, "-")[-1] == "RevisionFailed: boom"
    assert _row(shown, "8080", False, "-")[-1] == "transformer: RevisionFailed: boom"


def why(message: str) -> dict[str, str]:
    return {"reason": "RevisionFailed", "message": message}


def test_revisions_name_their_component_where_there_are_several() -> None:
    assert revisions_of(service(part("predictor"))) == "00001 100%"
    both = service(part("predictor"), part("transformer"))
    assert revisions_of(both) == "predictor 00001 100%, transformer 00001 100%"
    assert revisions_of(service()) == "-"
