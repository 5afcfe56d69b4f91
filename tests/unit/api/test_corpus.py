"""Our verdicts against those on KServe's own published manifests.

The corpus is a reference outside the repository: `$KSERVE_LOCAL_SHARED/corpus`, else `../shared`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kserve_local.api.manifest import load
from kserve_local.api.review import FileReport, review

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("KSERVE_LOCAL_SHARED") or REPOSITORY.parent / "shared")
WANTED = 0.98
_WRITTEN = ("yaml", "kind", "schema", "field")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    file = SHARED / "corpus" / "manifests.jsonl"
    assert file.is_file(), f"{file} is missing; set KSERVE_LOCAL_SHARED"
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def reports(rows: list[dict[str, Any]]) -> dict[str, FileReport]:
    """Each manifest judged on its own."""
    return {row["id"]: review({row["id"]: load(row["yaml"], row["id"])})[0] for row in rows}


def agreement(differ: list[str], total: int, what: str) -> str:
    listed = "\n".join(differ)
    return f"{what}: {total - len(differ)}/{total} agree; these do not:\n{listed}"


def test_schema_verdicts_agree(rows: list[dict[str, Any]], reports: dict[str, FileReport]) -> None:
    """`schema_valid` is what a cluster's schema and CEL rules say to the manifest as written."""
    differ = [
        f"{row['id']} {row['source']}: {row['schema_valid']=}, {row['errors']}"
        for row in rows
        if reports[row["id"]].schema_valid != row["schema_valid"]
    ]
    assert len(differ) <= (1 - WANTED) * len(rows), agreement(differ, len(rows), "schema_valid")
    # All agree today; a change that loses one has to say so here.
    assert not differ, agreement(differ, len(rows), "schema_valid")


def test_the_same_fields_are_unknown(
    rows: list[dict[str, Any]], reports: dict[str, FileReport]
) -> None:
    """A cluster prunes exactly these."""
    differ = []
    for row in rows:
        ours = sorted(
            f.field
            for f in reports[row["id"]].findings
            if f.source == "field" and f.message.startswith("unknown field")
        )
        if ours != sorted(row["unknown"]):
            differ.append(f"{row['id']}: {row['unknown']}, ours {ours}")
    assert not differ, agreement(differ, len(rows), "unknown fields")


def test_strict_verdicts_agree(rows: list[dict[str, Any]]) -> None:
    """With `--strict` unknown and repeated fields are errors; webhooks are left out here."""
    differ = []
    for row in rows:
        report = review({row["id"]: load(row["yaml"], row["id"])}, strict=True)[0]
        refused = any(f.severity == "error" and f.source in _WRITTEN for f in report.findings)
        if refused == row["strict_valid"]:
            differ.append(f"{row['id']} {row['source']}: {row['strict_valid']=}")
    assert not differ, agreement(differ, len(rows), "strict_valid")


def test_what_a_cluster_takes_is_only_refused_by_webhooks_and_names(
    rows: list[dict[str, Any]], reports: dict[str, FileReport]
) -> None:
    """`live_valid` knows no webhooks: where we differ, one of them, or the name, is the reason."""
    for row in rows:
        report = reports[row["id"]]
        if report.valid != row["live_valid"]:
            reasons = {f.source for f in report.findings if f.severity == "error"}
            assert row["live_valid"], row["id"]
            assert reasons <= {"webhook", "metadata", "runtime"}, (row["id"], report.findings)
