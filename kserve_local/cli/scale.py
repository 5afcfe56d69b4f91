"""`kserve-local scale`: a number of replicas by hand, kept apart from the spec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from kserve_local.cli.options import COMPONENTS, Common, common
from kserve_local.errors import NotFound, UsageError

if TYPE_CHECKING:
    from kserve_local.api.meta import Object
    from kserve_local.client.client import Client

AUTO = "auto"
ZERO = "zero"
KNATIVE, STANDARD = "Knative", "Standard"
MOST = 1000


class Replicas(click.ParamType[str]):
    """A number of replicas, `auto` or `zero`."""

    name = "replicas"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text in (AUTO, ZERO):
            return text
        if text.isdecimal() and int(text) <= MOST:
            return str(int(text)) if int(text) else ZERO
        self.fail(f"{text!r} is no number from 0 to {MOST}, {AUTO} or {ZERO}.", param, ctx)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the command line says."""

    name: str
    replicas: str
    component: str | None
    revision: str | None

    @property
    def value(self) -> str | None:
        """The annotation's value; None takes it off."""
        return {AUTO: None, ZERO: "0"}.get(self.replicas, self.replicas)

    def meant(self, objects: list[Object]) -> list[Object]:
        """Return those of the component that is meant: a number is for one, the rest for all.

        Raises:
            UsageError: The service has no such component.
        """
        whose = self.component or ("" if self.replicas in (AUTO, ZERO) else "predictor")
        found = [o for o in objects if _is_of(o, whose)]
        if self.component and not found:
            raise UsageError(f'"{self.name}" has no {self.component}')
        return found

    def told(self, obj: Object, *, before: int, override: int | None, mode: str) -> dict[str, Any]:
        """Return the entry of `--json` for a Revision or Deployment that was scaled."""
        from kserve_local.api import names
        from kserve_local.api.meta import labels_of, name_of

        return {
            "component": labels_of(obj).get(names.COMPONENT_LABEL, ""),
            "revision": name_of(obj),
            "replicas": self.replicas,
            "before": before,
            "override": override,
            "mode": mode,
        }


@click.command("scale")
@click.argument("name")
@click.argument("replicas", type=Replicas(), metavar="N|auto|zero")
@click.option(
    "--component",
    type=click.Choice(COMPONENTS),
    help="Default: the predictor; for auto and zero, all.",
)
@click.option("--revision", help="Its name or number (default: those that have traffic).")
@common
def command(
    flags: Common, name: str, replicas: str, component: str | None, revision: str | None
) -> int:
    """Give the service NAME so many replicas, whatever the autoscaler says.

    No YAML is changed and no revision made. A number holds until `auto`, or until an edit of the
    spec makes a new revision; zero holds until the next request. In Standard mode both hold until
    `auto`: nothing wakes a service at zero there.
    """
    from kserve_local.cli.session import run, service_name

    settings = flags.settings_of_running()
    out = flags.output("scale")
    namespace = flags.namespace or settings.namespace
    name = service_name(name)
    asked = _Asked(name, replicas, component, revision)

    async def work(client: Client) -> list[dict[str, Any]]:
        found = await _autoscalers(client, namespace, name)
        if found:
            return await _scale_revisions(client, namespace, asked, found)
        return await _scale_deployments(client, namespace, asked)

    changed = run(settings, work)
    if flags.as_json:
        out.envelope({"scaled": changed})
        return 0
    for entry in changed:
        out.data(f"{entry['revision']}: {_told(entry)}")
    if replicas == AUTO:
        return 0
    standard = any(entry["mode"] == STANDARD for entry in changed)
    until = "until the next request" if replicas == ZERO else "until a new revision"
    if standard:
        until = "until auto, and requests get 503 meanwhile" if replicas == ZERO else "until auto"
    out.say(f"holds {until}; to the autoscaler again: kserve-local scale {name} auto")
    return 0


async def _autoscalers(client: Client, namespace: str, name: str) -> list[Object]:
    """Return the PodAutoscalers of a service; none in Standard mode.

    Raises:
        NotFound: There is no such service.
    """
    from kserve_local.api import names as api_names
    from kserve_local.api import scheme
    from kserve_local.api.meta import labels_of
    from kserve_local.cli.session import list_services

    kinds = {
        str(s["kind"])
        for s in await list_services(client, namespace=namespace)
        if s["metadata"]["name"] == name
    }
    if not kinds:
        raise NotFound(f'inferenceservices.serving.kserve.io "{name}" not found')
    return [
        a
        for a in await client.list(scheme.POD_AUTOSCALER, namespace=namespace)
        if name in (labels_of(a).get(api_names.ISVC_LABEL), labels_of(a).get(api_names.GRAPH_LABEL))
    ]


async def _scale_revisions(
    client: Client, namespace: str, asked: _Asked, found: list[Object]
) -> list[dict[str, Any]]:
    """Scale the Revisions of PodAutoscalers.

    Raises:
        UsageError: The service has no such component, or the Revision no traffic.
        NotFound: It has no such Revision.
    """
    from kserve_local.api import names, pod_autoscaler, scheme
    from kserve_local.api.meta import name_of
    from kserve_local.cli.session import is_revision

    wanted = asked.meant(found)
    if asked.revision:
        chosen = [a for a in wanted if is_revision(asked.revision, name_of(a))]
        if not chosen:
            known = ", ".join(sorted(map(name_of, wanted)))
            raise NotFound(f'"{asked.name}" has no revision {asked.revision}; there are: {known}')
        idle = [name_of(a) for a in chosen if not _may_have_traffic(a)]
        if idle:
            raise UsageError(
                f"{idle[0]} has no traffic, and so no replicas",
                hint=f"kserve-local rollout status {asked.name}",
            )
    else:
        chosen = [a for a in wanted if _may_have_traffic(a)] or _newest(wanted)
    patch = {"metadata": {"annotations": {names.SCALE: asked.value, names.EVICTED: None}}}
    changed = []
    for autoscaler in chosen:
        await client.patch(scheme.POD_AUTOSCALER, name_of(autoscaler), patch, namespace)
        before, override = pod_autoscaler.replicas(autoscaler), pod_autoscaler.override(autoscaler)
        changed.append(asked.told(autoscaler, before=before, override=override, mode=KNATIVE))
    return changed


async def _scale_deployments(client: Client, namespace: str, asked: _Asked) -> list[dict[str, Any]]:
    """Scale the Deployments of a service in Standard mode, past their HPAs.

    Raises:
        UsageError: There is none, or no HPA scales it.
        NotFound: It has no such Deployment.
    """
    from kserve_local.api import names, pod_autoscaler, scheme
    from kserve_local.api.meta import controller_of, name_of
    from kserve_local.api.workloads import replicas_of

    deployments = await client.list(scheme.DEPLOYMENT, namespace=namespace)
    own = [d for d in deployments if (controller_of(d) or {}).get("name") == asked.name]
    if not own:
        hint = f"kserve-local status {asked.name}"
        raise UsageError(f'"{asked.name}" has nothing to scale', hint=hint)
    chosen = asked.meant(own)
    if asked.revision:
        chosen = [d for d in chosen if name_of(d) == asked.revision]
        if not chosen:
            known = ", ".join(sorted(map(name_of, own)))
            raise NotFound(f'"{asked.name}" has no Deployment {asked.revision}; there are: {known}')
    hpas = {
        str(h["spec"]["scaleTargetRef"]["name"]): h
        for h in await client.list(scheme.HORIZONTAL_POD_AUTOSCALER, namespace=namespace)
    }
    patch = {"metadata": {"annotations": {names.SCALE: asked.value}}}
    changed = []
    for deployment in chosen:
        target = name_of(deployment)
        if target not in hpas:
            raise UsageError(
                f"{target} has no autoscaler whose place a number could take",
                hint=f"minReplicas says how many replicas it has, or: kserve-local kubectl scale "
                f"deployment {target} --replicas=N",
            )
        hpa = hpas[target]
        override = pod_autoscaler.override(hpa)
        await client.patch(scheme.HORIZONTAL_POD_AUTOSCALER, name_of(hpa), patch, namespace)
        if asked.value is None and override == 0:
            # An HPA leaves a Deployment without replicas alone.
            least = {"spec": {"replicas": int(hpa["spec"].get("minReplicas") or 1)}}
            await client.patch(scheme.DEPLOYMENT, target, least, namespace)
        before = replicas_of(deployment)
        changed.append(asked.told(deployment, before=before, override=override, mode=STANDARD))
    return changed


def _is_of(autoscaler: Object, component: str) -> bool:
    from kserve_local.api import names as api_names
    from kserve_local.api.meta import labels_of

    # A graph's revisions have no component.
    own = labels_of(autoscaler).get(api_names.COMPONENT_LABEL, "")
    return not component or not own or own == component


def _may_have_traffic(autoscaler: Object) -> bool:
    from kserve_local.api.pod_autoscaler import UNREACHABLE

    return bool(autoscaler["spec"].get("reachability") != UNREACHABLE)


def _newest(autoscalers: list[Object]) -> list[Object]:
    from kserve_local.api.meta import name_of

    return sorted(autoscalers, key=name_of)[-1:]


def _told(entry: dict[str, Any]) -> str:
    before = entry["before"]
    was = f" (was {before})" if before >= 0 else ""
    if entry["replicas"] == AUTO:
        if entry["override"] is None:
            return "the autoscaler's, as before"
        return "the autoscaler's again"
    count = 0 if entry["replicas"] == ZERO else int(entry["replicas"])
    return f"{count} replica{'' if count == 1 else 's'}{was}"
