"""HTTPRoute -> its status: what a Gateway's controller says on a cluster.

Reads HTTPRoutes and Services, writes the HTTPRoutes' status. `routes` and the gateway carry out
those that KServe wrote; one of a user's own is stored and led nowhere, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable

from kserve_local.api.meta import Key, Object, controller_of, namespace_of, timestamp, with_status
from kserve_local.api.scheme import HTTP_ROUTE, INFERENCE_SERVICE, SERVICE, key_of
from kserve_local.controllers.isvc_ingress import parents_status, weights_of
from kserve_local.reconcile.controller import Watch, itself
from kserve_local.reconcile.result import DONE, Result
from kserve_local.store.store import Store


class HTTPRouteController:
    """Says of every HTTPRoute whether it is served."""

    name = "httproute"

    def __init__(self, store: Store) -> None:
        self._store = store
        self.watches = (Watch(HTTP_ROUTE.id, itself), Watch(SERVICE.id, self._users))

    def _users(self, service: Object) -> Iterable[Key]:
        """Map a Service to the HTTPRoutes that lead to it."""
        for route in self._store.list(HTTP_ROUTE.id, namespace=namespace_of(service)):
            if service["metadata"]["name"] in _services_of(route):
                yield key_of(route)

    async def reconcile(self, key: Key) -> Result:
        """Write the route's status."""
        route = self._store.find(key)
        if route is None or route["metadata"].get("deletionTimestamp"):
            return DONE
        missing = [
            name
            for name in _services_of(route)
            if self._store.find(Key(SERVICE.id, key.namespace, name)) is None
        ]
        owner = controller_of(route) or {}
        status = parents_status(
            route,
            missing=missing,
            served=owner.get("kind") == INFERENCE_SERVICE.kind,
            now=timestamp(),
        )
        if status != route.get("status"):
            await self._store.update_status(with_status(route, status))
        return DONE


def _services_of(route: Object) -> list[str]:
    rules = route["spec"].get("rules") or ()
    return list(dict.fromkeys(name for rule in rules for name, _ in weights_of(rule)))
