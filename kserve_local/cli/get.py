"""`kserve-local get`: objects as a table, YAML, JSON or a template, for people without kubectl.

Forms, names and the rules for several types at once are kubectl's. `--json` gives the envelope
instead, with --watch one JSON object a line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count, groupby
from typing import TYPE_CHECKING, Any

import click

from kserve_local.cli.options import Common, common
from kserve_local.cli.output import padded, width
from kserve_local.errors import NotFound, ServiceUnavailable, UsageError

if TYPE_CHECKING:
    from kserve_local.api.meta import Object
    from kserve_local.api.scheme import ResourceType
    from kserve_local.client.client import Client
    from kserve_local.settings import Settings

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
FORMS = ("table", "wide", "yaml", "json", "name", "env")
TEMPLATE = "jsonpath="


class Form(click.ParamType[str]):
    """One of `FORMS`, or `jsonpath=TEMPLATE`."""

    name = "form"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text not in FORMS and not (text.startswith(TEMPLATE) and text != TEMPLATE):
            self.fail(f"{text!r} is none of {', '.join(FORMS)}, {TEMPLATE}TEMPLATE.", param, ctx)
        return text


@click.command("get")
@click.argument("resource", metavar="RESOURCE[,RESOURCE]...")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-A", "--all-namespaces", is_flag=True)
@click.option("-l", "--selector", default="", help="Label selector.")
@click.option("-w", "--watch", is_flag=True, help="Go on with what changes next.")
@click.option(
    "-o",
    "--output",
    type=Form(),
    default="table",
    metavar="FORM",
    help=f"{', '.join(FORMS)}, or {TEMPLATE}TEMPLATE as kubectl takes it.",
)
@common
def command(
    flags: Common,
    resource: str,
    names: tuple[str, ...],
    all_namespaces: bool,
    selector: str,
    watch: bool,
    output: str,
) -> int:
    """List the objects of RESOURCE (isvc, pods, isvc,ksvc, all), or show those NAMEd.

    One object is also named RESOURCE/NAME. A template: -o jsonpath='{.status.url}'.
    """
    from kserve_local.cli.session import run

    settings = flags.settings_of_running()
    wanted = parse(resource, names)
    namespace = None if all_namespaces else flags.namespace or settings.namespace
    query = _Query(wanted, namespace, selector)
    show = _Printer(flags, query, output)
    if watch and len(wanted) > 1:
        raise UsageError("--watch takes one resource type and at most one name")
    if output == "env" and not flags.as_json:
        _check_env(wanted, watch)

    async def work(client: Client) -> None:
        if watch:
            await _watch(client, query, show)
        else:
            show.all(*await _fetch(client, query, table=show.as_table), settings)

    run(settings, work)
    return 0


def _check_env(wanted: Sequence[tuple[ResourceType, str]], watch: bool) -> None:
    """Refuse variables of what nobody can call.

    Raises:
        UsageError: Another type than InferenceService is asked for, or --watch.
    """
    other = next((k.plural for k, _ in wanted if k.kind != "InferenceService"), "")
    if other:
        raise UsageError(
            f"-o env is for InferenceServices; {other} have no address to call",
            hint="kserve-local get isvc -o env",
        )
    if watch:
        raise UsageError("-o env is read once; --watch would repeat it")


def parse(resource: str, names: Sequence[str]) -> list[tuple[ResourceType, str]]:
    """Return what the arguments mean: (type, name), or (type, "") for all of its objects.

    Raises:
        NotFound: There is no such type.
        UsageError: RESOURCE/NAME and RESOURCE NAME are mixed.
    """
    from kserve_local.api import scheme
    from kserve_local.cli.session import resource_named

    if any("/" in text for text in (resource, *names)):
        pairs = [resource_named(text) for text in (resource, *names)]
        if not all(name for _, name in pairs):
            first = next(text for text in (resource, *names) if "/" in text)
            raise UsageError(f'"{first}" names type and object: then every argument does')
        return [(scheme.BY_ID[id_], name) for id_, name in pairs]
    kinds: dict[str, ResourceType] = {}
    for word in filter(None, (part.strip() for part in resource.split(","))):
        several = [kind for kind in scheme.ALL if word.lower() in kind.categories]
        for kind in several or [scheme.BY_ID[resource_named(word)[0]]]:
            kinds[kind.id] = kind
    if not kinds:
        raise UsageError("which resource type?", hint="kserve-local get isvc")
    return [(kind, name) for kind in kinds.values() for name in names or ("",)]


@dataclass(frozen=True, slots=True)
class _Query:
    """What to show: `wanted` is `parse`'s; without a namespace, of all of them."""

    wanted: Sequence[tuple[ResourceType, str]]
    namespace: str | None
    selector: str

    @property
    def is_one(self) -> bool:
        """Whether one object is asked for, not a list."""
        return len(self.wanted) == 1 and bool(self.wanted[0][1])

    @property
    def kinds(self) -> int:
        """How many types are asked for."""
        return len({kind.id for kind, _ in self.wanted})

    def path(self, client: Client, kind: ResourceType, name: str) -> str:
        return client.path(kind, name, self.namespace, everywhere=True)


async def _fetch(
    client: Client, query: _Query, *, table: bool
) -> tuple[list[tuple[ResourceType, Any]], NotFound | None]:
    """Return the answers of each type, and what was not there."""
    found: list[tuple[ResourceType, Any]] = []
    absent: list[str] = []
    for kind, name in query.wanted:
        labels = {"labelSelector": query.selector} if query.selector and not name else None
        accept = TABLE if table else "application/json"
        try:
            path = query.path(client, kind, name)
            found.append((kind, await client.call("GET", path, query=labels, accept=accept)))
        except NotFound as error:
            absent.append(error.message)
    return found, NotFound("\n".join(absent)) if absent else None


async def _watch(client: Client, query: _Query, show: _Printer) -> None:
    """Show what there is, then every change.

    Raises:
        NotFound: The object named is not there.
        ServiceUnavailable: The server went away.
    """
    ((kind, name),) = query.wanted
    accept = TABLE if show.as_table else "application/json"
    only = f"metadata.name={name}" if name else ""
    first = await client.call(
        "GET",
        query.path(client, kind, ""),
        query={"labelSelector": query.selector, "fieldSelector": only},
        accept=accept,
    )
    there = first["rows"] if show.as_table else first["items"]
    if name and not there:
        raise NotFound(f'{kind.id} "{name}" not found')
    show.changes(kind, first, "ADDED")
    stream = client.watch(
        kind,
        namespace=query.namespace if kind.namespaced else None,
        since=int(first["metadata"]["resourceVersion"]),
        labels=query.selector,
        fields=only,
        accept=accept,
    )
    async with aclosing(stream) as events:
        async for event in events:
            show.changes(kind, event.object, event.type)
    raise ServiceUnavailable("the supervisor ended", hint="kserve-local status")


@dataclass
class _Printer:
    """Prints answers in the form asked for."""

    flags: Common
    query: _Query
    form: str
    _widths: list[int] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=lambda: count(1))
    _begun: bool = False

    def __post_init__(self) -> None:
        self.out = self.flags.output("get")
        self.as_table = self.form in ("table", "wide") and not self.flags.as_json
        self._render = self._template()

    def all(
        self,
        found: Sequence[tuple[ResourceType, Any]],
        absent: NotFound | None,
        settings: Settings,
    ) -> None:
        """Print all answers, then raise what was missing.

        Raises:
            NotFound: `absent`; an envelope holds either objects or the error.
        """
        if absent is not None and (self.flags.as_json or not found):
            raise absent
        if self.as_table:
            self._tables(found)
        else:
            items = [o for kind, data in found for o in _objects(kind, data, self.query)]
            one = self.query.is_one and len(items) == 1
            data = items[0] if one else {
                "apiVersion": "v1",
                "kind": "List",
                "metadata": {"resourceVersion": ""},
                "items": items,
            }  # fmt: skip
            if self.flags.as_json:
                self.out.envelope(data)
            elif self.form == "env":
                self.out.data(_env(items, settings, self.flags.namespace))
            elif self.form == "name":
                for item in items:
                    self.out.data(name_of_object(item))
            else:
                click.echo(self._render(data), nl=not self.form.startswith(TEMPLATE))
        if absent is not None:
            raise absent

    def changes(self, kind: ResourceType, data: Any, change: str) -> None:
        """Print rows or objects of a watch as they come."""
        if self.as_table:
            self._rows(kind, data)
        else:
            for item in data["items"] if "items" in data and "rows" not in data else [data]:
                self._object(item, change)
        sys.stdout.flush()

    def _object(self, item: Object, change: str) -> None:
        if self.flags.as_json:
            line = {"type": "object", "ts": round(time.time(), 3), "seq": next(self._numbers)}
            self.out.data(
                json.dumps({**line, "change": change, "object": item}, ensure_ascii=False)
            )
        elif self.form == "name":
            self.out.data(name_of_object(item))
        else:
            if self.form == "yaml" and self._begun:
                self.out.data("---")
            self._begun = True
            click.echo(self._render(item), nl=not self.form.startswith(TEMPLATE))

    def _template(self) -> Callable[[Any], str]:
        """Return what makes text of an object; a template is read before anything is asked for."""
        if self.form.startswith(TEMPLATE):
            from kserve_local.cli.jsonpath import Template

            return Template(self.form.removeprefix(TEMPLATE)).render
        if self.form == "yaml":
            return _yaml
        return lambda data: json.dumps(data, indent=2, ensure_ascii=False)

    def _tables(self, found: Sequence[tuple[ResourceType, Any]]) -> None:
        """Print one table a type, blank lines between; types without objects are left out."""
        shown = False
        for _, group in groupby(found, key=lambda pair: pair[0].id):
            answers = list(group)
            kind, first = answers[0]
            rows = [row for _, data in answers for row in data["rows"]]
            if not rows:
                continue
            if shown:
                self.out.data("")
            shown, self._widths = True, []
            self._rows(kind, {**first, "rows": rows})
        if not shown:
            namespaced = any(kind.namespaced for kind, _ in self.query.wanted)
            where = self.query.namespace if namespaced else None
            self.out.say(f"No resources found{f' in {where} namespace' if where else ''}.")

    def _rows(self, kind: ResourceType, data: Any) -> None:
        """Print rows, under a header the first time; columns keep their widths from then on."""
        if not data["rows"]:
            return
        columns = data.get("columnDefinitions") or ()
        if columns:
            wide = self.form == "wide"
            self._shown = [i for i, c in enumerate(columns) if wide or not c.get("priority")]
        lines = [self._cells(kind, row) for row in data["rows"]]
        if not self._widths:
            header = [str(columns[i]["name"]).upper() for i in self._shown]
            lines.insert(0, ["NAMESPACE", *header] if self._everywhere(kind) else header)
        fitting = [max(map(width, column)) for column in zip(*lines, strict=True)]
        before = self._widths or [0] * len(fitting)
        self._widths = [max(pair) for pair in zip(before, fitting, strict=True)]
        for line in lines:
            cells = map(padded, line, self._widths)
            self.out.data("   ".join(cells).rstrip())

    _shown: list[int] = field(default_factory=list)

    def _everywhere(self, kind: ResourceType) -> bool:
        return self.query.namespace is None and kind.namespaced

    def _cells(self, kind: ResourceType, row: Any) -> list[str]:
        cells = ["" if row["cells"][i] is None else str(row["cells"][i]) for i in self._shown]
        metadata = row["object"]["metadata"]
        if self.query.kinds > 1 and cells[0] == metadata.get("name"):
            cells[0] = f"{singular(kind)}/{cells[0]}"
        return [str(metadata.get("namespace", "")), *cells] if self._everywhere(kind) else cells


def singular(kind: ResourceType) -> str:
    """Return the type as kubectl writes it before a name: `inferenceservice.serving.kserve.io`."""
    return ".".join(filter(None, (kind.kind.lower(), kind.group)))


def name_of_object(obj: Object) -> str:
    """Return `pod/iris-abc`, what `-o name` prints."""
    from kserve_local.api import scheme

    return f"{singular(scheme.of(obj))}/{obj['metadata']['name']}"


def _objects(kind: ResourceType, data: Any, query: _Query) -> list[Object]:
    named = any(name for k, name in query.wanted if k.id == kind.id)
    return [data] if named else list(data["items"])


def _env(items: Sequence[Object], settings: Settings, namespace: str | None) -> str:
    from kserve_local.cli.shell_variables import variables
    from kserve_local.client.project import need_running

    gateway = need_running(settings).gateway_url
    return variables(gateway, items, namespace or settings.namespace)


def _yaml(data: Any) -> str:
    import yaml

    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return text.rstrip("\n")
