"""Our type tables against KServe's released CRDs, field by field.

The CRDs are a reference outside the repository: `$KSERVE_LOCAL_SHARED/crds`, else `../shared/crds`.
Types, required fields, enums, defaults, patterns, bounds, list and map types, CEL rules: everything
but descriptions. `metadata` is left out: a CRD only says that it is an object, ours names its
fields, because the API server checks them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kserve_local.api import scheme
from kserve_local.api.schemagen import compile as compiler
from kserve_local.api.schemagen.tables import expand

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("KSERVE_LOCAL_SHARED") or REPOSITORY.parent / "shared")
OURS = sorted(
    f"{r.group}/{version}/{r.kind}"
    for r in scheme.ALL
    if r.group == "serving.kserve.io"
    for version in r.versions
)


def released() -> dict[str, Any]:
    """Return group/version/kind -> schema of the released CRDs."""
    folder = SHARED / "crds"
    assert folder.is_dir(), f"{folder} is missing; set KSERVE_LOCAL_SHARED"
    found = {}
    for file in sorted(folder.glob("*.json")):
        spec = json.loads(file.read_text())["spec"]
        for version in spec["versions"]:
            key = f"{spec['group']}/{version['name']}/{spec['names']['kind']}"
            found[key] = version["schema"]["openAPIV3Schema"]
    return found


def differences(theirs: Any, ours: Any, path: str = "") -> Iterator[str]:
    """Yield one line per difference, in the words of the schema."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            where = f"{path}.{key}" if path else key
            if key not in ours:
                yield f"missing  {where} = {json.dumps(theirs[key])[:160]}"
            elif key not in theirs:
                yield f"too much {where} = {json.dumps(ours[key])[:160]}"
            else:
                yield from differences(theirs[key], ours[key], where)
    elif path.rpartition(".")[2] == "required":
        if sorted(theirs) != sorted(ours):
            yield f"differs  {path}: released {sorted(theirs)}, ours {sorted(ours)}"
    elif theirs != ours:
        yield f"differs  {path}: released {json.dumps(theirs)}, ours {json.dumps(ours)}"


@pytest.fixture(scope="module")
def tables() -> tuple[Any, Any]:
    return compiler.build()


def test_every_released_kind_and_version_has_a_table() -> None:
    """A kind that KServe serves and we do not would be refused here and taken by a cluster."""
    assert sorted(released()) == OURS


@pytest.mark.parametrize("key", OURS)
def test_tables_equal_the_released_crd(key: str, tables: tuple[Any, Any]) -> None:
    """A field that differs is a manifest that is judged differently here and on a cluster."""
    types, kinds = tables
    ours = expand(types, kinds[key])
    ours["properties"] = {**ours["properties"], "metadata": {"type": "object"}}
    found = list(differences(released()[key], ours))
    assert not found, f"{len(found)} differences in {key}:\n" + "\n".join(found[:100])


def test_the_comparison_notices_every_kind_of_difference() -> None:
    """The test above must be able to fail."""
    theirs = {"properties": {"a": {"type": "string", "enum": ["x"]}}, "required": ["a"]}
    ours = {"properties": {"a": {"type": "integer"}, "b": {}}, "required": []}
    assert list(differences(theirs, ours)) == [
        'missing  properties.a.enum = ["x"]',
        'differs  properties.a.type: released "string", ours "integer"',
        "too much properties.b = {}",
        "differs  required: released ['a'], ours []",
    ]


def test_the_compiled_file_is_up_to_date() -> None:
    """`python -m kserve_local.api.schemagen.compile` was run after the last change of a table."""
    assert compiler.TARGET.read_text() == compiler.text()
