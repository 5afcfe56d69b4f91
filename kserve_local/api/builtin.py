"""The objects a fresh KServe v0.20 installation holds, from the packaged `manifests/*.yaml`.

Reads package data only. Namespaces `default` and `kserve`, the node, the ConfigMap
`inferenceservice-config`, KServe's 14 ClusterServingRuntimes, the ClusterStorageContainer
`default`, and our own `kserve-local-*` runtimes, which say so in an annotation.
"""

from __future__ import annotations

import copy
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from kserve_local.api import names
from kserve_local.api.meta import Object, annotations_of, name_of

# The C loader is ten times as fast; PyYAML has it wherever libyaml was there at build time.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Also the order of creation: a namespace before what lives in it.
_FILES = (
    "cluster-objects.yaml",
    "inferenceservice-config.yaml",
    "cluster-storage-container.yaml",
    "cluster-serving-runtimes.yaml",
    "kserve-local-runtimes.yaml",
)


@cache
def _read(file: str) -> tuple[Object, ...]:
    text = files("kserve_local.manifests").joinpath(file).read_text(encoding="utf-8")
    # BaseLoader-like surprises (`on`, bare dates) do not occur in our own files.
    return tuple(yaml.load_all(text, Loader=_Loader))


def builtin_objects() -> list[Object]:
    """Return fresh copies of all built-in objects, in an order that can be created one by one."""
    return [copy.deepcopy(obj) for file in _FILES for obj in _read(file)]


def cluster_serving_runtimes() -> list[Object]:
    """Return fresh copies of the built-in ClusterServingRuntimes, ours included."""
    return [obj for obj in builtin_objects() if obj["kind"] == "ClusterServingRuntime"]


def config_map() -> Object:
    """Return the ConfigMap `kserve/inferenceservice-config` as shipped; not to be changed."""
    return _read("inferenceservice-config.yaml")[0]


def is_local_only(runtime: Object) -> bool:
    """Whether a cluster has no such runtime: it is one of our `kserve-local-*`."""
    return names.LOCAL_ONLY in annotations_of(runtime) or name_of(runtime).startswith(
        "kserve-local-"
    )
