"""The host name by which the gateway sends calls to one revision of a service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kserve_local.errors import NotFound, ServiceUnavailable

if TYPE_CHECKING:
    from kserve_local.settings import Settings


def revision_host(settings: Settings, name: str, namespace: str, revision: str) -> str:
    """Return the host that leads to one revision alone, empty if all requests go there.

    That of a tag, else the one that a revision's own Service has in a cluster.

    Raises:
        NotFound: No such service, or it has no such revision.
        ServiceUnavailable: The revision is kept, without replicas.
    """
    from kserve_local.api import names, scheme
    from kserve_local.cli.session import is_revision, run
    from kserve_local.client.client import Client

    async def fetch(client: Client) -> tuple[Any, list[Any], list[Any]]:
        isvc = await client.get(scheme.INFERENCE_SERVICE, name, namespace)
        labels = f"{names.ISVC_LABEL}={name},component=predictor"
        kind = scheme.DEPLOYMENT if is_standard(isvc) else scheme.KNATIVE_SERVICE
        return (
            isvc,
            await client.list(kind, namespace=namespace, labels=labels),
            await client.list(scheme.REVISION, namespace=namespace, labels=labels),
        )

    def is_standard(isvc: Any) -> bool:
        return (isvc.get("status") or {}).get("deploymentMode") == names.STANDARD_MODE

    isvc, services, revisions = run(settings, fetch)
    if is_standard(isvc):
        found = [str(s["metadata"]["name"]) for s in services]
        for workload in found:
            if revision in (workload, workload.removeprefix(f"{name}-")):
                return f"{workload}.{namespace}.svc.cluster.local"
            if workload == names.predictor_name(name, revision):
                return f"{workload}.{namespace}.svc.cluster.local"
        raise NotFound(
            f'{name} has no Deployment "{revision}"; it has: {", ".join(sorted(found)) or "none"}',
            hint=f"kserve-local status {name}",
        )
    traffic = [
        (service["metadata"]["name"], entry)
        for service in services
        for entry in (service.get("status") or {}).get("traffic") or ()
    ]
    for service, entry in traffic:
        meant = revision == entry.get("tag") or is_revision(revision, entry.get("revisionName"))
        if meant and entry.get("tag"):
            return f"{entry['tag']}-{service}.{namespace}.localhost"
    routed: dict[str, int] = {}
    for _, entry in traffic:
        own = str(entry.get("revisionName"))
        routed[own] = routed.get(own, 0) + int(entry.get("percent") or 0)
    newest = {(s.get("status") or {}).get("latestCreatedRevisionName") for s in services}
    for own in (*routed, *filter(None, newest)):
        if is_revision(revision, own):
            return "" if routed.get(own) == 100 else f"{own}.{namespace}.svc.cluster.local"
    there = sorted(str(r["metadata"]["name"]) for r in revisions)
    if any(is_revision(revision, own) for own in there):
        raise ServiceUnavailable(
            f'revision "{revision}" of {name} is kept and has no traffic, so it has no replicas; '
            f"traffic goes to: {', '.join(sorted(routed)) or 'none'}",
            hint=f"kserve-local rollout history {name}",
        )
    raise NotFound(
        f'{name} has no revision "{revision}"; it has: {", ".join(there) or "none"}',
        hint=f"kserve-local status {name}",
    )
