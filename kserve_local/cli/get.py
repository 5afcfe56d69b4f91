"""`kserve-local get`: objects as a table, YAML or JSON, for people without kubectl."""

from __future__ import annotations

import json
from typing import Any

import click

from kserve_local.cli.options import Common, common
from kserve_local.cli.output import table
from kserve_local.errors import UsageError

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


@click.command("get")
@click.argument("resource")
@click.argument("name", required=False)
@click.option("-A", "--all-namespaces", is_flag=True)
@click.option("-l", "--selector", default="", help="Label selector.")
@click.option(
    "-o", "--output", type=click.Choice(["table", "wide", "yaml", "json", "name"]), default="table"
)
@common
def command(
    flags: Common,
    resource: str,
    name: str | None,
    all_namespaces: bool,
    selector: str,
    output: str,
) -> int:
    """List the objects of RESOURCE (isvc, pods, isvc/iris, ...), or show the one NAMEd."""
    from kserve_local.api import scheme
    from kserve_local.cli.session import resource_named, run
    from kserve_local.client.client import Client

    settings = flags.settings()
    found, inside = resource_named(resource)
    if name and inside:
        raise UsageError(f'name the object once: "{resource}" or "{name}"')
    name = name or inside
    kind = scheme.BY_ID[found]
    namespace = None if all_namespaces else flags.namespace or settings.namespace
    as_table = output in ("table", "wide") and not flags.as_json

    async def work(client: Client) -> Any:
        path = client.path(kind, name or "", namespace, everywhere=True)
        query = {"labelSelector": selector} if selector and not name else None
        if as_table:
            return await client.call("GET", path, query=query, accept=TABLE)
        return await client.call("GET", path, query=query)

    data = run(settings, work)
    out = flags.output("get")
    if flags.as_json:
        out.envelope(data)
    elif output == "json":
        out.data(json.dumps(data, indent=2, ensure_ascii=False))
    elif output == "yaml":
        import yaml

        out.data(yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip("\n"))
    elif output == "name":
        for item in data.get("items", [data]):
            out.data(f"{kind.id}/{item['metadata']['name']}")
    elif not data.get("rows"):
        where = f" in {namespace} namespace" if namespace and kind.namespaced else ""
        out.say(f"No resources found{where}.")
    else:
        out.data(_table(data, wide=output == "wide", everywhere=all_namespaces and kind.namespaced))
    return 0


def _table(data: dict[str, Any], *, wide: bool, everywhere: bool) -> str:
    columns = data["columnDefinitions"]
    shown = [i for i, c in enumerate(columns) if wide or not c.get("priority")]
    header = [str(columns[i]["name"]).upper() for i in shown]
    rows = [["" if row["cells"][i] is None else str(row["cells"][i]) for i in shown]
            for row in data["rows"]]  # fmt: skip
    if everywhere:
        header.insert(0, "NAMESPACE")
        for cells, row in zip(rows, data["rows"], strict=True):
            cells.insert(0, str(row["object"]["metadata"].get("namespace", "")))
    return table(rows, header)
