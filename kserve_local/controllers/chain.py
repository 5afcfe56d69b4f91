"""The chain as a list of controllers, and the one object all of them stand on.

Reads and writes through the store only. The supervisor gives what differs between a real project
and a test: the Pod webhook, addresses, where routes go.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from kserve_local.api.gaps import UNAVAILABLE
from kserve_local.api.meta import Key, Object
from kserve_local.api.scheme import SERVICE
from kserve_local.controllers import knative_names
from kserve_local.controllers.deployment import DeploymentController
from kserve_local.controllers.httproute import HTTPRouteController
from kserve_local.controllers.inferencegraph import InferenceGraphController
from kserve_local.controllers.inferenceservice import InferenceServiceController
from kserve_local.controllers.keda import KEDAController
from kserve_local.controllers.knative_service import KnativeServiceController
from kserve_local.controllers.observed import Observations
from kserve_local.controllers.revision import RevisionController
from kserve_local.controllers.routes import RoutesController
from kserve_local.controllers.standard_apply import StandardSettings
from kserve_local.controllers.unavailable import UnavailableController
from kserve_local.errors import AlreadyExists
from kserve_local.interfaces.holds import NONE, Holds
from kserve_local.interfaces.routing import RouteSink
from kserve_local.reconcile.controller import Reconciler
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store


@dataclass(frozen=True, slots=True)
class ChainSettings:
    """What the controllers need to know of a project.

    Args:
        domain: Knative's domain for public hosts (`Settings.gateway_domain`).
        progress_deadline: Seconds until a rollout counts as failed (`Settings.progress_deadline`).
        host_address: This machine's address as replicas with a network of their own see it
            (`Backend.host_address`).
        mutate: The Pod webhook (`pod_mutators.mutate` with its config and lookup bound).
        service_ip: The address of a Service of Standard mode (`AddressPool.service_ip`); empty:
            it has none.
        clock: Epoch seconds, for gradual rollouts.
        holds: Which Pods a debugger has stopped: the clocks of their rollouts stand.
    """

    domain: str = "example.com"
    progress_deadline: float = 600.0
    host_address: Callable[[], str] = str
    mutate: Callable[[Object], Object] = lambda pod: pod
    service_ip: Callable[[Key], str] = lambda key: ""
    clock: Callable[[], float] = time.time
    holds: Holds = NONE


def knative_chain(
    store: Store,
    events: EventRecorder,
    sink: RouteSink,
    settings: ChainSettings,
    observed: Observations | None = None,
) -> list[Reconciler]:
    """Return the controllers from InferenceService down to Pod, and the one for routes.

    Args:
        observed: Where the first of them tells what became of each spec.
    """
    standard = StandardSettings(
        domain=settings.domain,
        progress_deadline=settings.progress_deadline,
        service_ip=settings.service_ip,
    )
    return [
        InferenceServiceController(store, events, observed, standard),
        InferenceGraphController(store, events, observed, standard),
        KnativeServiceController(
            store, events, domain=settings.domain, clock=settings.clock, holds=settings.holds
        ),
        RevisionController(store, events, progress_deadline=settings.progress_deadline),
        DeploymentController(store, events, mutate=settings.mutate, holds=settings.holds),
        HTTPRouteController(store),
        KEDAController(store),
        RoutesController(store, sink, domain=settings.domain, host_address=settings.host_address),
        *(UnavailableController(store, events, kind) for kind in UNAVAILABLE),
    ]


async def ensure_local_gateway(store: Store, service_ip: Callable[[Key], str]) -> None:
    """Make the Service that all ExternalName Services of the chain point to, as on a cluster.

    Its clusterIP is the loopback address on which our gateway answers by Host; where there are no
    such addresses it is headless.

    Args:
        service_ip: `AddressPool.service_ip`; an empty address means none.
    """
    name, namespace = knative_names.LOCAL_GATEWAY.split(".")[:2]
    key = Key(SERVICE.id, namespace, name)
    address = service_ip(key) or "None"
    wanted: Object = {
        "apiVersion": SERVICE.api_version,
        "kind": SERVICE.kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"networking.knative.dev/ingress-provider": "istio"},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "ports": [{"name": "http2", "port": 80, "protocol": "TCP", "targetPort": 80}],
        },
    }
    existing = store.find(key)
    if existing is None:
        try:
            await store.create(wanted)
        except AlreadyExists:
            return
    elif existing["spec"].get("clusterIP") != address:
        await store.delete(key)
        await store.create(wanted)
