"""`-o env`: services as shell variables, for scripts that call them: `eval "$(... -o env)"`. Pure.

For a service `sklearn-iris`: `SKLEARN_IRIS_URL` (its base; `/v1/...` or `/v2/...` goes behind it),
`SKLEARN_IRIS_PREDICT` (the whole URL of a prediction in the protocol of its spec),
`SKLEARN_IRIS_HOST` (its name on the cluster, for a Host header to the gateway; empty before it has
one) and `SKLEARN_IRIS_READY` (True, False or Unknown). Once: `KSERVE_LOCAL_GATEWAY`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from kserve_local.api.meta import Object, get_condition, name_of, namespace_of
from kserve_local.cli.progress import base_url, urls
from kserve_local.errors import UsageError

GATEWAY = "KSERVE_LOCAL_GATEWAY"


def variables(gateway: str, services: Iterable[Object], namespace: str) -> str:
    """Return lines `NAME=value`, quoted for a POSIX shell.

    Args:
        gateway: Its URL.
        services: InferenceServices.
        namespace: Whose services have bare names; names of others begin with their namespace.

    Raises:
        UsageError: Two services would have the same variables.
    """
    values = {GATEWAY: base_url(gateway)}
    owners: dict[str, str] = {}
    for isvc in services:
        name, where = name_of(isvc), namespace_of(isvc)
        prefix = _word(name if where == namespace else f"{where}-{name}")
        if prefix in owners:
            raise UsageError(
                f"{owners[prefix]} and {where}/{name} would both be {prefix}_URL",
                hint="name one of them, or choose a namespace with -n",
            )
        owners[prefix] = f"{where}/{name}"
        found = urls(gateway, isvc)
        # No suffix ends in another one: `a` and `a-b` never share a variable.
        values[f"{prefix}_URL"] = found["path"]
        values[f"{prefix}_PREDICT"] = found["predict"]
        values[f"{prefix}_HOST"] = found["host"]
        ready = get_condition(isvc, "Ready") or {}
        values[f"{prefix}_READY"] = str(ready.get("status") or "Unknown")
    return "\n".join(f"{name}={shlex.quote(value)}" for name, value in values.items())


def _word(text: str) -> str:
    """Return what can begin a variable's name."""
    word = re.sub(r"[^A-Za-z0-9]", "_", text).upper()
    return f"_{word}" if word[:1].isdigit() else word
