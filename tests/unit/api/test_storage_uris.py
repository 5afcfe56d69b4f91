"""Storage containers: control-plane.md 7.1 and 7.7."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.api import builtin
from kserve_local.api.meta import name_of
from kserve_local.api.storage_uris import check, matching_container, named_container
from kserve_local.errors import Invalid

DEFAULT = [o for o in builtin.builtin_objects() if o["kind"] == "ClusterStorageContainer"]


def container(name: str, *formats: dict[str, str], **fields: Any) -> dict[str, Any]:
    spec = {"supportedUriFormats": list(formats), **fields.pop("spec", {})}
    return {"metadata": {"name": name}, "spec": spec, **fields}


@pytest.mark.parametrize(
    ("uri", "matches"),
    [
        ("gs://b/m", True),
        ("hf://a/b", True),
        ("modelscope://a/b", True),
        ("https://acct.blob.core.windows.net/c/m", True),
        ("http://host/m.tar", True),
        ("https://host", False),
        ("pvc://claim/m", False),
        ("oci://r/i", False),
        ("file:///m", False),
        ("models/iris", False),
    ],
)
def test_the_default_container(uri: str, matches: bool) -> None:
    """Not pvc, oci or file; all of these are accepted all the same."""
    assert (matching_container(uri, DEFAULT) is not None) is matches
    check(uri, DEFAULT)


def test_first_enabled_init_container_wins() -> None:
    """By prefix or unanchored expression; disabled ones and download jobs are passed over."""
    job = {"workloadType": "localModelDownloadJob"}
    containers = [
        container("off", {"prefix": "x://"}, disabled=True),
        container("job", {"prefix": "x://"}, spec=job),
        container("broken", {"regex": "("}),
        container("second", {"regex": "//b[a-z]+/"}),
        container("third", {"prefix": "x://"}),
    ]
    found = matching_container("x://bucket/m", containers)
    assert found is not None
    assert name_of(found) == "second"
    check("x://bucket/m", containers)
    with pytest.raises(Invalid, match=r"StorageUri \[y://m\] is not supported"):
        check("y://m", containers)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody", 'ClusterStorageContainer "nobody" not found'),
        ("off", 'ClusterStorageContainer "off" is disabled'),
        (
            "job",
            'ClusterStorageContainer "job" has workloadType "localModelDownloadJob"; explicit '
            'selection requires "initContainer"',
        ),
        ("other", 'ClusterStorageContainer "other" does not support storageUri "x://b/m"'),
    ],
)
def test_by_name_there_is_no_fallback(name: str, message: str) -> None:
    """`storageContainerName`."""
    containers = [
        container("off", {"prefix": "x://"}, disabled=True),
        container("job", {"prefix": "x://"}, spec={"workloadType": "localModelDownloadJob"}),
        container("other", {"prefix": "y://"}),
        container("right", {"prefix": "x://"}),
    ]
    with pytest.raises(Invalid) as caught:
        named_container(name, "x://b/m", containers)
    assert str(caught.value) == message
    assert name_of(named_container("right", "x://b/m", containers)) == "right"
