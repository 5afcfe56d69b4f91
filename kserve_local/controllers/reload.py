"""New Pods for a Deployment behind its old ones, without a Revision.

Reads and writes the Deployment's Pod template; `controllers.deployment` carries it out. What the
annotations are is `api.reloads`; who reaches the API server only sends `reloads.merge_patch`.
"""

from __future__ import annotations

from kserve_local.api.meta import Object
from kserve_local.api.reloads import with_digest
from kserve_local.api.scheme import key_of
from kserve_local.errors import Conflict
from kserve_local.store.store import Store


async def replace_pods(store: Store, deployment: Object, annotation: str, digest: str) -> bool:
    """Ask for new Pods for this digest; return False if they were asked for already.

    Args:
        deployment: Any state of it; what is written over is the one in the store.
        annotation: `names.CODE` or `names.MODEL`.
        digest: Of what the new Pods are for.

    Raises:
        NotFound: The Deployment is gone.
    """
    while True:
        current = store.get(key_of(deployment))
        wanted = with_digest(current, annotation, digest)
        if wanted is current:
            return False
        try:
            await store.update(wanted)
        except Conflict:
            # Somebody else wrote it in between, most likely its number of replicas.
            continue
        return True
